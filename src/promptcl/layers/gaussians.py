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

ROOM = 2**28
"""Bytes that factors of covariances may take while features are drawn: 56 classes of ViT-B/16, 910 of ViT-Ti/16."""


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
        if self.kind == "shared":
            mean_KD, count_K = self.mean_KD, self.count_K.value
            inside, n = packed(mean_KD.T @ (count_K[:, None] * mean_KD)), count_K.sum() - len(self.known)
            return unpacked((self.squares.value[0] - inside) / n.clamp_min(1), mean_KD.shape[1])
        count = self.count_K.value[label]
        mean_D, less = self.sum_KD.value[label] / count.clamp_min(1), (count - 1).clamp_min(1)
        if self.kind == "diagonal":
            return (self.squares.value[label] - count * mean_D.square()).clamp_min(0) / less
        own = self.squares.value[label] - count * packed(torch.outer(mean_D, mean_D))
        return unpacked(own / less, len(mean_D))

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

    def factors(self, room: int = ROOM) -> list[Tensor | None]:
        """The factor of each known class, in the order of `known`, for who draws more than once.

        Of the first classes, as many as `room` bytes hold; None for the others, which `draw` then computes each time.
        """
        known, width = self.known, self.sum_KD.value.shape[1]
        if self.kind == "shared":
            return [self.factor()] * len(known) if known else []
        kept = room // (8 * width * (1 if self.kind == "diagonal" else width))
        return [self.factor(label) if place < kept else None for place, label in enumerate(known)]

    def draw(self, rows: int, seed: int, factors: Sequence[Tensor | None] | None = None) -> tuple[Tensor, Tensor]:
        """Draw `rows` features of each known class: features [N, D] and class ids [N].

        What is drawn of a class depends on the seed and on that class alone, whatever others there are. factors: as
        `factors` gives them; None computes each and keeps none.
        """
        known, mean_KD = self.known, self.mean_KD
        features_KRD = torch.empty(len(known), rows, mean_KD.shape[1], device=mean_KD.device)
        each = zip(known, features_KRD, self.factors(0) if factors is None else factors, strict=True)
        for label, own_RD, kept in each:
            factor = self.factor(label) if kept is None else kept
            noise = torch.randn(own_RD.shape, generator=task_generator(seed, label, "class")).to(mean_KD)
            own_RD.copy_(mean_KD[label] + (noise * factor if factor.ndim == 1 else noise @ factor.T))
        labels_K = torch.tensor(known, dtype=torch.long, device=mean_KD.device)
        return features_KRD.flatten(0, 1), labels_K.repeat_interleave(rows)
