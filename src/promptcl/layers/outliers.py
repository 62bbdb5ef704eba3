"""Outliers of a class, made of its features (OVOR, ICLR 2024; NPOS, ICLR 2023). N features, O outliers, D width."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_POINTS, _DRAWS, _KEPT, _NOISE = 50, 600, 40, 0.1  # features, noise vectors for each, outliers; scale of the noise
_INSIDE, _OUTSIDE = -15.0, -3.0  # highest energy of features, lowest energy of outliers


def draw_outliers(features_ND: Tensor, kind: Literal["boundary", "origin"], generator: torch.Generator) -> Tensor:
    """Outliers [O, D] of the features of one class: of many candidates those farthest from their neighbours.

    Candidates are noise around the features (scaled to length 1) farthest from their neighbours, brought back to the
    length of these features (`boundary`), or noise around the origin (`origin`).
    """
    unit_ND, length_N = F.normalize(features_ND), features_ND.norm(dim=1)
    near = min(_POINTS, len(unit_ND))
    edge = torch.cdist(unit_ND, unit_ND).kthvalue(near, dim=1).values.topk(near).indices
    noise = _NOISE * torch.randn(near * _DRAWS, unit_ND.shape[1], generator=generator).to(unit_ND.device)
    if kind == "boundary":
        noise += unit_ND[edge].repeat_interleave(_DRAWS, 0)
    best = torch.cdist(noise, unit_ND).kthvalue(near, dim=1).values.topk(min(_KEPT, len(noise))).indices
    return noise[best] if kind == "origin" else noise[best] * length_N[edge[best // _DRAWS], None]


def energy(logits_BK: Tensor, allowed_BK: Tensor | None) -> Tensor:
    """Energy [B] of logits: minus their log-sum-exp over the classes that are allowed (None: all)."""
    if allowed_BK is not None:
        logits_BK = logits_BK.masked_fill(~allowed_BK, float("-inf"))
    return -logits_BK.logsumexp(1)


def margin_loss(inside_B: Tensor, outside_B: Tensor) -> Tensor:
    """Huber loss of energies [B] that lie on the wrong sides: of features above -15, of outliers below -3."""
    too_high, too_low = F.relu(inside_B - _INSIDE), F.relu(_OUTSIDE - outside_B)
    return F.huber_loss(too_high, torch.zeros_like(too_high)) + F.huber_loss(too_low, torch.zeros_like(too_low))
