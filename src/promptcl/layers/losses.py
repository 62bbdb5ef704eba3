"""Terms of a loss beside the cross-entropy. B images, D width, K classes so far."""

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
