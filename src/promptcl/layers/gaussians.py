"""One Gaussian for each class, from running sums, and features drawn from it in the place of images that are gone.

N features, D width, K classes so far, P = D (D + 1) / 2 numbers of a symmetric matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from promptcl.layers.sums import Sum, packed, unpacked
from promptcl.runtime.seeding import task_generator

Covariance = Literal["full", "diagonal", "shared"]
"""What is known of how features of a class vary: all, each number by itself, or what all classes have in common."""


class ClassGaussians(nn.Module):
    """Mean and covariance of the features of each class; adding images in any parts equals adding all at once."""

    def __init__(self, width: int, kind: Covariance = "full", jitter: float = 1e-4) -> None:
        """Start with no class; jitter is added to each variance, so that a class of few images can be drawn from."""
        super().__init__()
        self.kind, self.jitter = kind, jitter
        self.count_K, self.sum_KD = Sum(0), Sum(0, width)
        pairs = width if kind == "diagonal" else width * (width + 1) // 2
        self.squares = Sum(int(kind == "shared"), pairs)
        """Sums of x^2, or of x x^T without what is above its diagonal: a row for each class, or one for all."""

    def grow(self, classes: int) -> None:
        """Append `classes` classes with no image seen yet."""
        for part in (self.count_K, self.sum_KD, *([] if self.kind == "shared" else [self.squares])):
            part.grow(classes)

    def add(self, features_ND: Tensor, labels_N: Tensor) -> None:
        """Add features [N, D] of images with class ids [N]."""
        x_ND = features_ND.double()
        self.count_K.add_rows(labels_N, torch.ones_like(x_ND[:, 0]))
        self.sum_KD.add_rows(labels_N, x_ND)
        if self.kind == "diagonal":
            self.squares.add_rows(labels_N, x_ND.square())
        elif self.kind == "shared":
            self.squares.value[0] += packed(x_ND.T @ x_ND)
        else:
            for label in labels_N.unique().tolist():
                own_ND = x_ND[labels_N == label]
                self.squares.value[label] += packed(own_ND.T @ own_ND)

    @property
    def mean_KD(self) -> Tensor:
        """Mean of each class; zeros where no image was seen."""
        return self.sum_KD.value / self.count_K.value.clamp_min(1)[:, None]

    @property
    def known(self) -> list[int]:
        """Ids of the classes that have images."""
        return self.count_K.value.nonzero()[:, 0].tolist()

    def covariance(self, label: int = 0) -> Tensor:
        """Unbiased covariance [D, D] of a class (`shared`: within all classes), or the variances [D] if `diagonal`."""
        mean_KD, count_K = self.mean_KD, self.count_K.value
        if self.kind == "diagonal":
            spread = self.squares.value[label] - count_K[label] * mean_KD[label].square()
            return spread.clamp_min(0) / (count_K[label] - 1).clamp_min(1)
        if self.kind == "shared":
            inside, n = packed(mean_KD.T @ (count_K[:, None] * mean_KD)), count_K.sum() - len(self.known)
            return unpacked((self.squares.value[0] - inside) / n.clamp_min(1), mean_KD.shape[1])
        own = self.squares.value[label] - count_K[label] * packed(torch.outer(mean_KD[label], mean_KD[label]))
        return unpacked(own / (count_K[label] - 1).clamp_min(1), mean_KD.shape[1])

    def factor(self, label: int = 0) -> Tensor:
        """Lower triangle [D, D] whose product with its transpose is the covariance plus jitter; deviations if
        `diagonal`.
        """
        covariance = self.covariance(label)
        if self.kind == "diagonal":
            return (covariance + self.jitter).sqrt()
        covariance.diagonal().add_(self.jitter)
        lower_DD: Tensor = torch.linalg.cholesky(covariance)
        return lower_DD

    def factors(self) -> list[Tensor]:
        """The factor of each known class, in the order of `known`, for `draw`."""
        if self.kind == "shared":
            return [self.factor()] * len(self.known) if self.known else []
        return [self.factor(label) for label in self.known]

    def draw(self, rows: int, seed: int, factors: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Draw `rows` features of each known class: features [N, D] and class ids [N].

        What is drawn of a class depends on the seed and on that class alone, whatever others there are. factors: as
        `factors` gives them, for who draws more than once.
        """
        known, mean_KD, drawn = self.known, self.mean_KD, []
        for label, factor in zip(known, self.factors() if factors is None else factors, strict=True):
            noise = torch.randn(rows, mean_KD.shape[1], generator=task_generator(seed, label, "class")).to(mean_KD)
            drawn.append((mean_KD[label] + (noise * factor if factor.ndim == 1 else noise @ factor.T)).float())
        labels_K = torch.tensor(known, dtype=torch.long, device=mean_KD.device)
        return torch.cat([mean_KD[:0].float(), *drawn]), labels_K.repeat_interleave(rows)
