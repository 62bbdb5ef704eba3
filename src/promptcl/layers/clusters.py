"""K-means. N points, C centres, D width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from promptcl.layers.prompts import top_n


def k_means(points_ND: Tensor, count: int, generator: torch.Generator, restarts: int = 10, steps: int = 300) -> Tensor:
    """Centres [C, D] of the points: `count`, or as many as there are different points.

    The best of `restarts` runs of Lloyd's algorithm from k-means++ seeds (Arthur & Vassilvitskii 2007), in float64 on
    the CPU; a point as near to two centres belongs to the first, and a centre without points stays where it is.
    """
    points_ND = points_ND.double().cpu()
    best, least = points_ND[:1], float("inf")
    for _ in range(restarts):
        centres_CD = _seeds(points_ND, count, generator)
        nearest_N, total = _nearest(points_ND, centres_CD)
        for _ in range(steps):
            members_NC = F.one_hot(nearest_N, len(centres_CD)).double()
            sizes_C1 = members_NC.sum(0)[:, None]
            means_CD = members_NC.T @ points_ND / sizes_C1.clamp_min(1)
            centres_CD = torch.where(sizes_C1 > 0, means_CD, centres_CD)
            before_N, (nearest_N, total) = nearest_N, _nearest(points_ND, centres_CD)
            if torch.equal(before_N, nearest_N):
                break
        if total < least:
            best, least = centres_CD, total
    return best


def _seeds(points_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points to begin with: each drawn by its squared distance to those before it."""
    chosen = [int(torch.randint(len(points_ND), (1,), generator=generator))]
    gap_N = (points_ND - points_ND[chosen[-1]]).square().sum(1)
    while len(chosen) < count and gap_N.any():
        chosen.append(int(torch.multinomial(gap_N, 1, generator=generator)))
        gap_N = torch.minimum(gap_N, (points_ND - points_ND[chosen[-1]]).square().sum(1))
    return points_ND[chosen]


def _nearest(points_ND: Tensor, centres_CD: Tensor) -> tuple[Tensor, float]:
    """Number of the centre nearest to each point [N], and the sum of the squared distances to them."""
    gap_NC = torch.stack([(points_ND - centre_D).square().sum(1) for centre_D in centres_CD], 1)
    nearest_N1 = top_n(-gap_NC, 1)
    return nearest_N1[:, 0], gap_NC.gather(1, nearest_N1).sum().item()
