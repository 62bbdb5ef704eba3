"""Terms of a loss beside the cross-entropy. B images, J outputs that are compared, D width, K classes so far."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor


def contrast(means_KD: Tensor, features_BD: Tensor) -> Tensor:
    """How far features and class means are from being told apart: cross-entropy of the rows of Z Z^T / 0.8 (HiDe)."""
    z_ND = torch.cat([means_KD, features_BD])
    return F.cross_entropy(z_ND @ z_ND.T / 0.8, torch.arange(len(z_ND), device=z_ND.device))


def reverse_cross_entropy(logits_BK: Tensor, labels_B: Tensor, allowed_BK: Tensor | None) -> Tensor:
    """Mean of -log(10^-4) (1 - p) over the probabilities p of the right classes, among those allowed (Wang 2019)."""
    if allowed_BK is not None:
        logits_BK = logits_BK.masked_fill(~allowed_BK, float("-inf"))
    return -log(1e-4) * (1 - logits_BK.softmax(1).gather(1, labels_B[:, None])).mean()


def distillation(old_BJ: Tensor, new_BJ: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the softmax of new logits against that of old ones, both over a temperature (Li & Hoiem).

    There is no factor of its square, as in LwF (arXiv 1606.09282) and in BiC's code.
    """
    wanted_BJ = (old_BJ / temperature).softmax(1)
    return -(wanted_BJ * (new_BJ / temperature).log_softmax(1)).sum(1).mean()


def supervised_contrast(unit_BD: Tensor, labels_B: Tensor, anchors_B: Tensor, temperature: float) -> Tensor:
    """Mean over the anchors of -log p that a row chooses a row of its class among all others (Co2L; Khosla 2020).

    unit_BD: rows of length 1; labels_B: their class ids; anchors_B: True for rows that are anchors. A row is compared
    with all others, not with itself; each anchor is the mean over the others of its class. 0 where there is no anchor.
    """
    itself_BB = torch.eye(len(labels_B), dtype=torch.bool, device=unit_BD.device)
    log_BB = (unit_BD @ unit_BD.T / temperature).masked_fill(itself_BB, float("-inf")).log_softmax(1)
    same_BB = (labels_B[:, None] == labels_B) & ~itself_BB
    own_B = -log_BB.masked_fill(~same_BB, 0).sum(1) / same_BB.sum(1).clamp_min(1)
    return (own_B * anchors_B).sum() / anchors_B.sum().clamp_min(1)


def relation_distillation(old_BD: Tensor, new_BD: Tensor, old_temperature: float, temperature: float) -> Tensor:
    """Mean cross-entropy of how alike each row is to the others, as the new model says it, against the old one (Co2L).

    old_BD, new_BD: rows of length 1, the same images in the same order.
    """
    # without the diagonal, so that no -inf meets a probability of 0
    old_BO, new_BO = (_without_diagonal(rows @ rows.T) for rows in (old_BD, new_BD))
    wanted_BO = (old_BO / old_temperature).softmax(1)
    return -(wanted_BO * (new_BO / temperature).log_softmax(1)).sum(1).mean()


def _without_diagonal(square_BB: Tensor) -> Tensor:
    """The numbers of a square matrix beside its diagonal [B, B - 1], row by row; a mask would ask the device."""
    rows = len(square_BB)
    return square_BB.flatten()[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)
