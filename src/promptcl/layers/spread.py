"""What AnaCP solves in closed form. D width, K classes, M random features, X outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def solved(square_MM: Tensor, product_MX: Tensor, penalty: float) -> Tensor:
    """(G + penalty I)^-1 times a product [M, X]; only the lower triangle of G is read."""
    damped_MM = square_MM + penalty * torch.eye(len(square_MM), dtype=square_MM.dtype, device=square_MM.device)
    weight_MX: Tensor = torch.cholesky_solve(product_MX, torch.linalg.cholesky(damped_MM))
    return weight_MX


def prototypes(mean_KD: Tensor, within_DD: Tensor, spread: float) -> Tensor:
    """Class means [K, D] moved apart: `spread` is added to the singular values of the whitened, centred means.

    Directions along which the means do not vary are left alone.
    """
    values_D, vectors_DD = torch.linalg.eigh(within_DD)
    root_D, middle_D = values_D.sqrt(), mean_KD.mean(0)
    white_KD = (mean_KD - middle_D) @ vectors_DD / root_D
    left_KR, single_R, right_RD = torch.linalg.svd(white_KD, full_matrices=False)
    single_R = torch.where(single_R > 1e-9 * single_R.amax().clamp_min(1), single_R + spread, 0.0)
    spread_KD: Tensor = (left_KR * single_R @ right_RD) * root_D @ vectors_DD.T
    return spread_KD + middle_D
