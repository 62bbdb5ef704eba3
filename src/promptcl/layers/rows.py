"""What each image added to a classifier, kept so that it can be taken away again. N images, F length of a feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rows(nn.Module):
    """A feature and a class id for each image learned so far, up to a limit; beyond it, none at all."""

    features_NF: Tensor
    labels_N: Tensor

    def __init__(self, width: int, limit: int) -> None:
        """Keep the features of at most `limit` images (0: of none)."""
        super().__init__()
        self.limit = limit
        self.keeping = limit > 0
        """Whether there is a row for every image so far."""
        self.register_buffer("features_NF", torch.zeros(0, width))
        self.register_buffer("labels_N", torch.zeros(0, dtype=torch.long))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels_N)

    def fits(self, images: int) -> bool:
        """Whether `images` more stay within the limit."""
        return self.keeping and len(self) + images <= self.limit

    def grow(self, images: int) -> None:
        """Append `images` empty rows, which `add` fills."""
        self.features_NF = torch.cat([self.features_NF, self.features_NF.new_zeros(images, self.features_NF.shape[1])])
        self.labels_N = torch.cat([self.labels_N, self.labels_N.new_full((images,), -1)])

    def add(self, features_BF: Tensor, labels_B: Tensor) -> None:
        """Fill the next rows."""
        start = int((self.labels_N >= 0).sum())
        self.features_NF[start : start + len(labels_B)] = features_BF
        self.labels_N[start : start + len(labels_B)] = labels_B

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Features [N, F] and class ids [N] of the rows that are filled."""
        known_N = self.labels_N >= 0
        return self.features_NF[known_N], self.labels_N[known_N]

    def drop(self) -> None:
        """Keep nothing from now on."""
        self.keeping = False
        self.features_NF, self.labels_N = self.features_NF[:0], self.labels_N[:0]

    def relabel(self, labels_N: Tensor) -> None:
        """Give the images these class ids [N]; those with -1 are taken away."""
        kept_N = labels_N >= 0
        self.features_NF, self.labels_N = self.features_NF[kept_N], labels_N[kept_N].to(self.labels_N)
