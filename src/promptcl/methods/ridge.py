"""Ridge: ridge regression on the frozen features, nothing trained by gradients (baseline; with `cosine`, ours).

With running sums as in ACIL (Zhuang et al., arXiv 2205.14922) and RanPAC (McDonnell et al., arXiv 2307.02251), without
the random projection. Ours: the strength of the penalty is chosen from the sums, and the cosine with the mean of each
class may be added, which helps where classes have few images and tells images of no class.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.layers import ClassMeans, Penalty, RidgeHead
from promptcl.methods._base import Batch, OutOfFold
from promptcl.methods._frozen import FrozenFeatures, FrozenOptions

FAMILIAR = 2.0
"""Weight of the cosine beside the ridge logit where it is asked whether an image belongs to any class."""


class RidgeOptions(FrozenOptions):
    """Settings of the ridge regression."""

    strength: float | None = Field(default=None, gt=0)
    """Ridge penalty, in the meaning of `penalty`; null: chosen from the sums after every task (`RidgeHead`)."""
    penalty: Penalty = "mean"
    """What `strength` is a share of: `mean`, the mean variance of all features; `each`, the variance of each feature,
    as if all were standardised; `absolute`: nothing, the number itself is added (a share of no use elsewhere: it
    grows with the number of images)."""
    balance: bool = True
    """Classes count alike, however many images each has (no difference where all have the same number)."""
    cosine: float = Field(default=0.0, ge=0)
    """Weight of the cosine with the mean class token of each class, added to the logits."""


class Model(FrozenFeatures):
    """A ridge classifier on frozen features: `l2p_ridge` without its prompts."""

    about = "ridge regression in closed form; 1 pass"
    Options: ClassVar[type[RidgeOptions]] = RidgeOptions
    options: RidgeOptions

    def __init__(self, options: RidgeOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.token = slice(0, backbone.width)  # of the feature: the class token after the last block
        if options.features == "deep":
            self.token = slice(self.width - 2 * backbone.width, self.width - backbone.width)
        self.means = ClassMeans(backbone.width) if options.cosine else None
        self.ridge = self.new_head()

    def new_head(self) -> RidgeHead:
        """Make a head without classes."""
        options = self.options
        return RidgeHead(self.lifted, options.strength, options.penalty, sums=not self.rows.keeping)

    @property
    def lifted(self) -> int:
        """Length of what the regression reads."""
        return self.width

    def lift(self, features_BF: Tensor) -> Tensor:
        """Turn features into what the regression reads."""
        return features_BF

    def grow_head(self, classes: int) -> None:
        """Make room for new classes."""
        self.ridge.grow(classes)
        if self.means is not None:
            self.means.grow(classes)

    def begin_sums(self) -> None:
        """Make room for the sums of the regression."""
        self.ridge.begin_sums()
        if self.means is not None:
            self.means.reset()

    def add(self, features_BF: Tensor, labels_B: Tensor) -> None:
        """Add images to the sums."""
        self.ridge.add(self.lift(features_BF), labels_B)
        if self.means is not None:
            self.means.add(features_BF[:, self.token], labels_B)

    def solve(self) -> None:
        """Solve the regression."""
        self.ridge.solve(self.options.balance)

    def fit(self, features_NF: Tensor, labels_N: Tensor) -> None:
        """Solve the regression of all images at once."""
        self.ridge.fit(self.lift(features_NF), labels_N, self.options.balance)
        if self.means is not None:
            self.means.fit(features_NF[:, self.token], labels_N)

    def restart(self) -> None:
        """Drop all classes."""
        device = self.rows.features_NF.device
        self.ridge = self.new_head().to(device)
        if self.means is not None:
            self.means = ClassMeans(self.means.sum_KD.value.shape[1]).to(device)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Estimated one-hot labels [B, K], plus the weighted cosines."""
        features_BF = batch.query_BD
        logits_BK: Tensor = self.ridge(self.lift(features_BF))
        if self.means is not None:
            logits_BK = logits_BK + self.options.cosine * self.means(features_BF[:, self.token])
        return logits_BK

    def familiarity(self, backbone: Backbone, batch: Batch, logits_BK: Tensor) -> Tensor:
        """The largest logit [B], the cosine weighing FAMILIAR in it."""
        if self.means is None:
            return logits_BK.max(1).values
        cosine_BK: Tensor = self.means(batch.query_BD[:, self.token])
        return (logits_BK + (FAMILIAR - self.options.cosine) * cosine_BK).max(1).values

    def left_out(self, features_NF: Tensor, labels_N: Tensor) -> OutOfFold:
        """Logits of each image by the regression, and the means, of all others."""
        logits_NK = self.ridge.out_of_fold(self.lift(features_NF), labels_N, self.options.balance).float()
        familiar_NK = logits_NK
        if self.means is not None:
            cosine_NK = self.means.out_of_fold(features_NF[:, self.token], labels_N)
            logits_NK, familiar_NK = logits_NK + self.options.cosine * cosine_NK, logits_NK + FAMILIAR * cosine_NK
        return OutOfFold(logits_NK, labels_N, familiar_NK.max(1).values)
