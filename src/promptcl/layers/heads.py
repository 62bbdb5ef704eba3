"""Classifier heads that grow with the classes. B images, D width, K classes so far."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from promptcl.layers.prompts import cosine
from promptcl.layers.sums import Sum


class GrowingLinear(nn.Module):
    """Linear layer whose outputs are added class by class; old rows keep their values bit for bit."""

    def __init__(self, width: int, init: Literal["zero", "uniform"] = "zero") -> None:
        """Start without outputs. New rows: `zero` (L2P release), or `uniform`, U(-1/sqrt(D), 1/sqrt(D)) (nn.Linear)."""
        super().__init__()
        self.init = init
        self.weight_KD = nn.Parameter(torch.zeros(0, width))
        self.bias_K = nn.Parameter(torch.zeros(0))

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append rows for `classes` new classes."""
        width, device = self.weight_KD.shape[1], self.weight_KD.device
        weight, bias = torch.zeros(classes, width), torch.zeros(classes)
        if self.init == "uniform":
            bound = width**-0.5
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
        self.weight_KD = nn.Parameter(torch.cat([self.weight_KD.detach(), weight.to(device)]))
        self.bias_K = nn.Parameter(torch.cat([self.bias_K.detach(), bias.to(device)]))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]."""
        return features_BD @ self.weight_KD.T + self.bias_K


class ClassMeans(nn.Module):
    """Running mean of the features of each class; logits are cosines to the means."""

    def __init__(self, width: int) -> None:
        """Start with no class."""
        super().__init__()
        self.sum_KD = Sum(0, width, dtype=torch.float32)
        self.count_K = Sum(0, dtype=torch.float32)

    def grow(self, classes: int) -> None:
        """Append `classes` classes with no image seen yet."""
        self.sum_KD.grow(classes)
        self.count_K.grow(classes)

    def add(self, features_BD: Tensor, labels_B: Tensor) -> None:
        """Add features [B, D] of images with class ids [B]."""
        self.sum_KD.add_rows(labels_B, features_BD)
        self.count_K.add_rows(labels_B, torch.ones_like(features_BD[:, 0]))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Cosine [B, K] to each class mean."""
        return cosine(features_BD, self.sum_KD.value / self.count_K.value.clamp_min(1)[:, None])


class RidgeHead(nn.Module):
    """Ridge regression from running sums, so that it never forgets: adding tasks one by one equals adding all at once.

    Keeps the sum of x x^T, the sum of x of each class, and counts (float64); no image and no single feature vector.
    """

    weight_KD: Tensor
    bias_K: Tensor

    def __init__(self, width: int, strength: float) -> None:
        """Start with no class; `strength`: penalty as a share of each feature's variance, to suit any backbone."""
        super().__init__()
        self.strength = strength
        self.scatter_DD, self.sum_KD, self.count_K = Sum(width, width), Sum(0, width), Sum(0)
        self.register_buffer("weight_KD", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("bias_K", torch.zeros(0, dtype=torch.float64))

    def grow(self, classes: int) -> None:
        """Append `classes` classes with no image seen yet."""
        self.sum_KD.grow(classes)
        self.count_K.grow(classes)
        self.weight_KD = torch.cat([self.weight_KD, self.weight_KD.new_zeros(classes, self.weight_KD.shape[1])])
        self.bias_K = torch.cat([self.bias_K, self.bias_K.new_zeros(classes)])

    def add(self, features_BD: Tensor, labels_B: Tensor) -> None:
        """Add features [B, D] of images with class ids [B]."""
        x_BD = features_BD.double()
        self.scatter_DD.add(x_BD.T @ x_BD)
        self.sum_KD.add_rows(labels_B, x_BD)
        self.count_K.add_rows(labels_B, torch.ones_like(x_BD[:, 0]))

    def solve(self, balance: bool = False) -> None:
        """Set weights and bias to the centred ridge regression onto one-hot labels, solved from the sums.

        balance: every class has the same weight in targets and centre, however many images it has.
        """
        scatter_DD, sum_KD, count_K = self.scatter_DD.value, self.sum_KD.value, self.count_K.value
        n, classes, mean_D = count_K.sum(), len(count_K), sum_KD.sum(0) / count_K.sum()
        centred_DD = scatter_DD - n * torch.outer(mean_D, mean_D)
        variance_D = centred_DD.diagonal()
        # A feature that never varies would make the system singular; it gets weight 0 instead.
        system_DD = centred_DD + torch.diag(self.strength * variance_D + torch.where(variance_D > 0, 0.0, 1.0))
        prior_K = count_K / n
        target_KD = sum_KD - torch.outer(count_K, mean_D)
        if balance:
            means_KD = sum_KD / count_K.clamp_min(1)[:, None]
            mean_D, prior_K = means_KD.mean(0), torch.full_like(prior_K, 1 / classes)
            target_KD = n / classes * (means_KD - mean_D)
        self.weight_KD = torch.linalg.solve(system_DD, target_KD.T).T.contiguous()
        self.bias_K = prior_K - self.weight_KD @ mean_D

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]: estimated one-hot labels."""
        return (features_BD.double() @ self.weight_KD.T + self.bias_K).float()
