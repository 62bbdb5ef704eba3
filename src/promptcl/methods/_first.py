"""Base of the methods that adapt the ViT in the first task and compute classifiers from its features afterwards.

Not a method itself. First-session adaptation is from Panos et al. 2023 (arXiv 2303.13199), and phase 1 of RanPAC and
APER. B images, F length of a feature, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.errors import UserError
from promptcl.layers import CosineHead, GrowingLinear
from promptcl.layers.adapters import Adaptation, make
from promptcl.methods._base import Batch, Method, OutOfFold, Stage, TaskView, masked_cross_entropy
from promptcl.methods._frozen import FrozenFeatures, FrozenOptions


class FirstSessionOptions(FrozenOptions):
    """Settings of what is adapted in the first task."""

    adapt: Adaptation = "none"
    """What is trained in the first task: `none`, an `adapter` beside each MLP, `ssf`, a scale and shift of every
    activation, deep `prompts`, or `lora`, changes of low rank of queries, keys and values."""
    size: int = Field(default=64, ge=1)
    """Inner width of an adapter, rank of LoRA, or number of prompts a block."""
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
    def _rows_are_frozen(self) -> FirstSessionOptions:
        if self.adapt != "none" and self.rows:
            raise ValueError(f"rows={self.rows} with adapt={self.adapt}: what was trained cannot be taken away; rows=0")
        return self


class FirstSession(FrozenFeatures):
    """Trains what is adapted, with a head of its own, in the first task; then its features are frozen ones."""

    options: FirstSessionOptions
    head: GrowingLinear | CosineHead

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training, where something is adapted; nothing is replayed."""
        return () if options.adapt == "none" else ("train.",)

    def adapt(self, backbone: Backbone, generator: torch.Generator, head: GrowingLinear | CosineHead) -> None:
        """Draw what is adapted, and take the head that trains it; to be called once, in the constructor."""
        o = self.options
        self.adapted = None if o.adapt == "none" else make(o.adapt, backbone, o.size, generator)
        self.head = head

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


class SumsOnly(FirstSession):
    """A classifier that is made of sums alone, so no image can be taken away again."""

    mend = Method.mend

    def __init__(self, options: FirstSessionOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class. Raises UserError for `rows`, which it would not keep."""
        if options.rows:
            raise UserError(f"method.rows={options.rows}: this method keeps sums alone; write method.rows=0")
        super().__init__(options, backbone, generator)

    def fit(self, features_NF: Tensor, labels_N: Tensor) -> None:
        """Never called: there are no rows."""
        raise NotImplementedError

    def restart(self) -> None:
        """Never called: there are no rows."""
        raise NotImplementedError

    def left_out(self, features_NF: Tensor, labels_N: Tensor) -> OutOfFold:
        """Never called: there are no rows."""
        raise NotImplementedError
