"""NCM: nearest class mean (cosine) of the frozen features, nothing trained (Janson et al., arXiv 2210.04428).

With `features=class` also called SimpleCIL (Zhou et al., arXiv 2303.07338).
"""

from __future__ import annotations

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.layers import ClassMeans
from promptcl.methods._base import Batch, OutOfFold
from promptcl.methods._frozen import FrozenFeatures, FrozenOptions


class NCMOptions(FrozenOptions):
    """Settings of the nearest class mean."""


class Model(FrozenFeatures):
    """The mean feature of each class, and nothing else."""

    about = "class means; 1 pass"
    Options = NCMOptions

    def __init__(self, options: NCMOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.means = ClassMeans(self.width)

    def grow_head(self, classes: int) -> None:
        """Make room for the means of new classes."""
        self.means.grow(classes)

    def add(self, features_BF: Tensor, labels_B: Tensor) -> None:
        """Add images to the means of their classes."""
        self.means.add(features_BF, labels_B)

    def solve(self) -> None:
        """Means need no solution."""

    def fit(self, features_NF: Tensor, labels_N: Tensor) -> None:
        """Make the means anew."""
        self.means.fit(features_NF, labels_N)

    def restart(self) -> None:
        """Drop all means."""
        self.means = ClassMeans(self.width).to(self.rows.features_NF.device)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cosine [B, K] of the frozen feature with each class mean."""
        logits_BK: Tensor = self.means(batch.query_BD)
        return logits_BK

    def left_out(self, features_NF: Tensor, labels_N: Tensor) -> OutOfFold:
        """Cosines with the means of all other images."""
        logits_NK = self.means.out_of_fold(features_NF, labels_N)
        return OutOfFold(logits_NK, labels_N, logits_NK.max(1).values)

    def familiarity(self, backbone: Backbone, batch: Batch, logits_BK: Tensor) -> Tensor:
        """The largest cosine [B]."""
        return logits_BK.max(1).values
