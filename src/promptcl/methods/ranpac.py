"""RanPAC: ridge regression on randomly projected frozen features (McDonnell et al., NeurIPS 2023, arXiv 2307.02251).

With `adapt`, adapters or prompts are trained in the first task and frozen then (their phase 1). Differs from the
release: regression is centred, with an intercept, and the strength of its penalty is chosen from the sums of all tasks
(`RidgeHead`), not on a fifth of the newest one, so the classifier is the same for any order of tasks; the training head
of phase 1 is a linear one with `train` and `epochs`, not a cosine one; prompts are prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.layers import GrowingLinear, RidgeHead
from promptcl.layers.adapters import Adaptation, make
from promptcl.methods import ridge
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy


class RanPACOptions(ridge.RidgeOptions):
    """Settings of RanPAC."""

    width: int = Field(default=1300, ge=0)
    """Length of the random projection; the paper takes 10,000. 0: none, the features themselves. The sums take its
    square times 4 bytes in the store: with 100 classes 9 MB in all."""
    centred: bool = True
    """Regression with an intercept; the paper's has none."""
    adapt: Adaptation = "none"
    """What is trained in the first task: `none`, an `adapter` beside each MLP, `ssf`, a scale and shift of every
    activation, or deep `prompts`."""
    size: int = Field(default=64, ge=1)
    """Inner width of an adapter, or number of prompts a block."""
    adapt_lr: float | None = Field(default=None, gt=0)
    """Learning rate of what is adapted; null: as `train.lr`, which the training head has."""

    def unread(self) -> dict[str, Unread]:
        """What says how something is adapted, where nothing is."""
        found = super().unread()
        if self.adapt in ("none", "ssf"):
            found["size"] = Unread(f"adapt={self.adapt}", "adapt=adapter")
        if self.adapt == "none":
            found["adapt_lr"] = Unread("adapt=none", "adapt=adapter")
        return found

    @model_validator(mode="after")
    def _rows_are_frozen(self) -> RanPACOptions:
        if self.adapt != "none" and self.rows:
            raise ValueError(f"rows={self.rows} with adapt={self.adapt}: what was trained cannot be taken away; rows=0")
        return self


class Model(ridge.Model):
    """A ridge classifier on max(0, f W), W a fixed random matrix."""

    Options: ClassVar[type[ridge.RidgeOptions]] = RanPACOptions
    options: RanPACOptions
    directions_FM: Tensor

    def __init__(self, options: RanPACOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw the directions from N(0, 1 / F) and what is adapted; both are functions of the seed."""
        super().__init__(options, backbone, generator)
        directions_FM = torch.randn(self.width, options.width, generator=generator) / self.width**0.5
        self.register_buffer("directions_FM", directions_FM, persistent=False)
        self.adapted = None if options.adapt == "none" else make(options.adapt, backbone, options.size, generator)
        self.head = GrowingLinear(self.width)

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training, where something is adapted; nothing is replayed."""
        return () if options.adapt == "none" else ("train.",)

    @property
    def lifted(self) -> int:
        """Length of what the regression reads."""
        return self.options.width or self.width

    def new_head(self) -> RidgeHead:
        """Make a head without classes."""
        o = self.options
        return RidgeHead(self.lifted, o.strength, o.penalty, o.centred, sums=not self.rows.keeping)

    def lift(self, features_BF: Tensor) -> Tensor:
        """Project features, where a projection is asked for."""
        return F.relu(features_BF @ self.directions_FM) if self.options.width else features_BF

    def query(self, backbone: Backbone, images_BCHW: Tensor) -> Tensor:
        """The feature [B, F] that the classifier reads: of the adapted model, once it was adapted."""
        if self.adapted is None:
            return super().query(backbone, images_BCHW)
        with torch.no_grad():
            return self.adapted_feature(backbone, images_BCHW)

    def adapted_feature(self, backbone: Backbone, images_BCHW: Tensor) -> Tensor:
        """Feature [B, F] of the model with what is adapted, with gradient where that is trained."""
        assert self.adapted is not None
        if self.options.features == "deep":
            return backbone.deep(images_BCHW, self.adapted.inserts())
        pooled_BD: Tensor = backbone(images_BCHW, self.adapted.inserts()).pooled_BD
        return pooled_BD

    def grow(self, task: TaskView) -> None:
        """Make room for new classes; only the first task has a training head and trains."""
        if self.adapted is not None:
            first = task.index == 0
            if first:
                self.head.grow(task.new_classes, task.generator)
            self.requires_grad_(False)
            self.adapted.requires_grad_(first)
            self.head.requires_grad_(first)
        super().grow(task)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train in the first task, where something is adapted; then add the images and solve."""
        if self.adapted is not None and task.index == 0:
            if task.new_classes < 2:
                task.warn("the first task has one class, from which nothing can be adapted; begin with several")
            yield Stage(task.new)
        yield from super().learn(backbone, task)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy of the training head."""
        return masked_cross_entropy(self.head(self.adapted_feature(backbone, batch.images_BCHW)), batch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What the first task trains: the head at `lr`, what is adapted at `adapt_lr`."""
        if self.adapted is None:
            return []
        head: list[nn.Parameter] = list(self.head.parameters())
        return [
            {"params": head, "lr": lr},
            {"params": list(self.adapted.parameters()), "lr": self.options.adapt_lr or lr},
        ]
