"""FSA: adapters of the first task, a head aligned with class Gaussians, and class means (ours, after MOS).

What the released code of MOS (Sun et al., AAAI 2025, arXiv 2412.09441) nearly reduces to: it merges the adapters of all
tasks in every forward pass, at test too, until all are nearly the first one. Here there is only that one: one pass an
image, statistics that stay true, the same for any order of tasks after the first. First-session adaptation is from
Panos et al. 2023 (arXiv 2303.13199). Ours too: the ridge classifier as another end of the same method.
B images, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.layers import ClassMeans, GrowingLinear, RidgeHead
from promptcl.layers.adapters import Adaptation
from promptcl.methods._align import Alignment, AlignOptions
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.methods._first import FirstSessionOptions, SumsOnly


class FSAOptions(AlignOptions, FirstSessionOptions):
    """Settings of FSA."""

    adapt: Adaptation = "adapter"
    size: int = Field(default=16, ge=1)
    classifier: Literal["aligned", "ridge", "both"] = "aligned"
    """`aligned`: a linear head trained on the class Gaussians, with the class means; `ridge`, as `ridge`; or `both`."""
    means: bool = True
    """The aligned head is joined by the cosines with the class means, which weigh more with each task."""

    def unread(self) -> dict[str, Unread]:
        """What says how a head is aligned, where there is none."""
        idle = (*AlignOptions.model_fields, "means") if self.classifier == "ridge" else ()
        return {**super().unread(), **dict.fromkeys(idle, Unread("classifier=ridge", "classifier=aligned"))}


class Model(SumsOnly):
    """Class Gaussians and means of the adapted features, and the heads made of them."""

    about = "adapters in the first task, aligned head, class means; 1 pass"
    Options = FSAOptions
    options: FSAOptions

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training, where something is adapted or the head is aligned; nothing is replayed."""
        own = super().reads(options)
        if own or options.classifier == "ridge":
            return own
        idle = ("epochs", "min_steps", "batch_size", "balance", "lr", "lr_batch", "schedule", "milestones", "mask")
        return ("train.", *(f"!train.{name}" for name in idle))

    def __init__(self, options: FSAOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw what is adapted."""
        super().__init__(options, backbone, generator)
        self.adapt(backbone, generator, GrowingLinear(self.width))
        ridge, aligned = options.classifier != "aligned", options.classifier != "ridge"
        self.ridge = RidgeHead(self.width) if ridge else None
        self.alignment = Alignment(self.width, options) if aligned else None
        self.aligned, self.means = GrowingLinear(self.width), ClassMeans(self.width)

    def grow(self, task: TaskView) -> None:
        """Make room for new classes; the number of the task weighs the class means."""
        self.index = task.index
        super().grow(task)
        self.aligned.grow(task.new_classes, task.generator)
        self.aligned.requires_grad_(True)

    def grow_head(self, classes: int) -> None:
        """Make room for what is known of new classes."""
        for part in (self.alignment, self.ridge, self.means):
            if part is not None:
                part.grow(classes)

    def add(self, features_BF: Tensor, labels_B: Tensor) -> None:
        """Add images to the sums."""
        if self.alignment is not None:
            self.alignment.gaussians.add(features_BF, labels_B)
        if self.ridge is not None:
            self.ridge.add(features_BF, labels_B)
        self.means.add(features_BF, labels_B)

    def solve(self) -> None:
        """Solve the regression, where there is one."""
        if self.ridge is not None:
            self.ridge.solve(balance=True)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Adapt in the first task, add the images, then train the head on what is drawn of all classes."""
        yield from super().learn(backbone, task)
        if self.alignment is not None:
            yield self.alignment.stage(task, self.aligned.parameters(), self.aligned)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Log-probabilities [B, K] of head and means together; with `ridge` its estimated labels, alone or added."""
        features_BF = batch.query_BD
        if self.options.classifier == "ridge" and self.ridge is not None:
            labels_BK: Tensor = self.ridge(features_BF)
            return labels_BK
        aligned_BK: Tensor = self.aligned(features_BF)
        if self.ridge is None and not self.options.means:
            return aligned_BK.log_softmax(1)  # the logarithm of a probability may be that of 0
        probable_BK = aligned_BK.softmax(1)
        if self.options.means:
            cosine_BK: Tensor = self.means(features_BF)
            probable_BK = (probable_BK + ((self.index + 1) * cosine_BK).softmax(1)) / 2
        return probable_BK.log() if self.ridge is None else probable_BK + self.ridge(features_BF)
