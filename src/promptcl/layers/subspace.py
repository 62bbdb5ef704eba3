"""The space that the inputs of earlier tasks take, and directions outside of it (InfLoRA, arXiv 2404.00228; DualGPM).

D width, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

_OUTSIDE = 0.01  # greatest length of what of a vector of length 1 may lie in the space that is taken


def directions(mean_DD: Tensor, taken_DD: Tensor, rank: int) -> Tensor:
    """A [r, D]: what most of the inputs lies along outside of the space that is taken; A A^T = I / 3.

    Where inputs have fewer directions outside than the rank asks for, what is found may lie in the space: zeros then.
    """
    left_Dr: Tensor = torch.linalg.svd(mean_DD - taken_DD @ mean_DD).U[:, :rank]
    return left_Dr.T.masked_fill(_inside(left_Dr, taken_DD)[:, None], 0) / 3**0.5


def taken(mean_DD: Tensor, taken_DD: Tensor, energy: float) -> Tensor:
    """The space that is taken, as a projector [D, D], with as many new directions as reach `energy` (DualGPM)."""
    total, rest_DD = mean_DD.square().sum(), mean_DD - taken_DD @ mean_DD
    left_DD, values_D, _ = torch.linalg.svd(rest_DD)
    reached_D = (taken_DD @ mean_DD).square().sum() + values_D.square().cumsum(0)
    already = reached_D[0] - values_D[0].square() >= energy * total
    count = 0 if already else int((reached_D < energy * total).sum()) + 1
    new_DX: Tensor = left_DD[:, :count]
    new_DX = new_DX[:, ~_inside(new_DX, taken_DD)]  # an energy of 1 is never quite reached
    return taken_DD + new_DX @ new_DX.T


def _inside(unit_DX: Tensor, taken_DD: Tensor) -> Tensor:
    """Which of the columns [X] are not outside of the space."""
    length_X: Tensor = (taken_DD @ unit_DX).norm(dim=0)
    return length_X > _OUTSIDE
