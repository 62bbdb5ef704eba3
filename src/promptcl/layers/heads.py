"""Classifier heads that grow with the classes. B images, D width, K classes so far."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
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


class GrowingCosine(nn.Module):
    """As GrowingLinear, without bias and with rows scaled to length 1; new rows start as those of torch.nn.Linear."""

    def __init__(self, width: int, temperature: float | None = None) -> None:
        """Start without outputs. temperature: logits are cosines over it; None: features keep their length."""
        super().__init__()
        self.temperature = temperature
        self.weight_KD = nn.Parameter(torch.zeros(0, width))

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append rows for `classes` new classes."""
        old_KD, bound = self.weight_KD.detach(), self.weight_KD.shape[1] ** -0.5
        new_KD = torch.empty(classes, old_KD.shape[1]).uniform_(-bound, bound, generator=generator)
        self.weight_KD = nn.Parameter(torch.cat([old_KD, new_KD.to(old_KD)]))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]."""
        if self.temperature is None:
            return features_BD @ F.normalize(self.weight_KD).T
        return cosine(features_BD, self.weight_KD) / self.temperature


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

    def reset(self) -> None:
        """Start all means anew, from no image."""
        self.sum_KD.value, self.count_K.value = self.sum_KD.value * 0, self.count_K.value * 0

    def fit(self, features_ND: Tensor, labels_N: Tensor) -> None:
        """Make the means of these features [N, D] with class ids [N], and of no others."""
        self.reset()
        self.add(features_ND, labels_N)

    def out_of_fold(self, features_ND: Tensor, labels_N: Tensor) -> Tensor:
        """Cosine [N, K] of each feature with the class means that it is no part of; 0 for a class of no other image."""
        cosine_NK: Tensor = self(features_ND)
        row_N = torch.arange(len(labels_N), device=labels_N.device)
        others_ND = self.sum_KD.value[labels_N] - features_ND
        alone_N = self.count_K.value[labels_N] < 2
        own_N = F.cosine_similarity(features_ND, others_ND).masked_fill(alone_N, 0)
        return cosine_NK.index_put((row_N, labels_N), own_N)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Cosine [B, K] to each class mean."""
        return cosine(features_BD, self.sum_KD.value / self.count_K.value.clamp_min(1)[:, None])
