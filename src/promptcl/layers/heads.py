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

    def __init__(self, width: int, init: Literal["zero", "uniform", "normal"] = "zero") -> None:
        """Start without outputs. New rows: `zero` (L2P release), `uniform`, U(-1/sqrt(D), 1/sqrt(D)) (nn.Linear), or
        `normal`, N(0, 0.02^2) with bias 0.
        """
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
        elif self.init == "normal":
            weight.normal_(0.0, 0.02, generator=generator)
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


class TaskLinear(GrowingLinear):
    """Linear layer whose rows of the newest task are parameters of their own, so that weight decay moves no others."""

    def __init__(self, width: int, init: Literal["zero", "uniform", "normal"] = "normal") -> None:
        """Start without outputs; `init` as of GrowingLinear."""
        super().__init__(width, init)
        self.past_weight_KD = nn.Parameter(torch.zeros(0, width))
        self.past_bias_K = nn.Parameter(torch.zeros(0))

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Add the rows so far to the past ones, and make `classes` new ones."""
        self.past_weight_KD, self.past_bias_K = map(nn.Parameter, self.rows())
        self.weight_KD, self.bias_K = nn.Parameter(self.weight_KD[:0].detach()), nn.Parameter(self.bias_K[:0].detach())
        super().grow(classes, generator)

    def rows(self) -> tuple[Tensor, Tensor]:
        """All weights [K, D] and biases [K], without gradient."""
        pairs = (self.past_weight_KD, self.weight_KD), (self.past_bias_K, self.bias_K)
        weight_KD, bias_K = (torch.cat(pair).detach() for pair in pairs)
        return weight_KD, bias_K

    @property
    def new(self) -> list[nn.Parameter]:
        """What the newest task trains."""
        return [self.weight_KD, self.bias_K]

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]."""
        past_BK = features_BD @ self.past_weight_KD.T + self.past_bias_K
        return torch.cat([past_BK, super().forward(features_BD)], 1)


class TaskCosine(TaskLinear):
    """TaskLinear whose logits are a constant times the cosine of the feature and the weights of each class."""

    def __init__(self, width: int, scale: float) -> None:
        """Start without outputs; there are no biases."""
        super().__init__(width, "uniform")
        self.scale = scale

    @property
    def new(self) -> list[nn.Parameter]:
        """What the newest task trains."""
        return [self.weight_KD]

    @property
    def all(self) -> list[nn.Parameter]:
        """The weights of all classes."""
        return [self.past_weight_KD, self.weight_KD]

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.scale * cosine(features_BD, torch.cat([self.past_weight_KD, self.weight_KD]))


class ResidualHead(GrowingLinear):
    """A growing linear head on LayerNorm(x + W2 GELU(W1 x))."""

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        """Draw W1 [H, D] and W2 [D, H] as torch.nn.Linear does."""
        super().__init__(width, "normal")
        self.up, self.down = GrowingLinear(width, "uniform"), GrowingLinear(hidden, "uniform")
        self.up.grow(hidden, generator)
        self.down.grow(width, generator)
        self.norm = nn.LayerNorm(width)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]."""
        return super().forward(self.norm(features_BD + self.down(F.gelu(self.up(features_BD)))))


class CosineHead(GrowingCosine):
    """Logits are a scale, trained too, times the cosine of the feature and a vector of each class."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        """Start without outputs, with this scale."""
        super().__init__(width)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.scale * cosine(features_BD, self.weight_KD)


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
