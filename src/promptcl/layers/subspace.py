"""The space that the inputs of earlier tasks take, and directions outside of it (InfLoRA, arXiv 2404.00228; DualGPM).

D width, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def directions(mean_DD: Tensor, taken_DD: Tensor, rank: int) -> Tensor:
    """A [r, D]: what most of the inputs lies along outside of the space that is taken; A A^T = I / 3."""
    left_DD: Tensor = torch.linalg.svd(mean_DD - taken_DD @ mean_DD).U
    return left_DD[:, :rank].T / 3**0.5


def taken(mean_DD: Tensor, taken_DD: Tensor, energy: float) -> Tensor:
    """The space that is taken, as a projector [D, D], with as many new directions as reach `energy` (DualGPM)."""
    total, rest_DD = mean_DD.square().sum(), mean_DD - taken_DD @ mean_DD
    left_DD, values_D, _ = torch.linalg.svd(rest_DD)
    reached_D = (taken_DD @ mean_DD).square().sum() + values_D.square().cumsum(0)
    already = reached_D[0] - values_D[0].square() >= energy * total
    count = 0 if already else int((reached_D < energy * total).sum()) + 1
    return taken_DD + left_DD[:, :count] @ left_DD[:, :count].T  # type: ignore[no-any-return]
