"""SLCA: the whole ViT trained slowly, then a head aligned with class Gaussians (Zhang et al., ICCV 2023).

arXiv 2303.05118. ViT and a head a task are trained task by task, the ViT a hundred times slower; then a copy of all
heads is aligned with features drawn from a Gaussian of each class, and answers. The next task goes on from the heads as
they were before. `slca_lora` is SLCA++. Differs from the code: no brightness jitter; the alignment has the schedule of
`train`. B images, N features, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.layers import GrowingLinear, TaskLinear
from promptcl.methods._align import Alignment, AlignOptions, nearer, normalised
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy
from promptcl.methods._tasks import KnowsTasks
from promptcl.methods._tuned import ViTOptions, slow_group, trainable


class SLCAOptions(AlignOptions, ViTOptions):
    """Settings of SLCA."""

    temperature: float | None = Field(default=0.1, gt=0)
    """The alignment divides logits by this times the mean norm of those of each task; null: by nothing."""


class Model(KnowsTasks):
    """The ViT, the heads as trained, and the aligned head."""

    about = "the ViT slowly, aligned head; 1 pass"
    Options = SLCAOptions
    options: SLCAOptions

    def __init__(self, options: SLCAOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start from the weights of the backbone, with no class."""
        super().__init__(options, backbone, generator)
        self.vit = trainable(backbone, options)
        self.raw, self.head = TaskLinear(backbone.width), GrowingLinear(backbone.width)
        self.alignment = Alignment(backbone.width, options)

    def grow(self, task: TaskView) -> None:
        """Append rows to both heads."""
        super().grow(task)
        for part in (self.raw, self.head):
            part.grow(task.new_classes, task.generator)
        self.alignment.grow(task.new_classes)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train slowly, add the class Gaussians, and align a copy of the heads, but for the first task."""
        yield Stage(task.new)
        self.absorb(backbone, task, task.new)
        for own, raw in zip(self.head.parameters(), self.raw.rows(), strict=True):
            own.copy_(raw)
        if task.index:
            yield self.alignment.stage(task, self.head.parameters(), self.aligned_logits, self.nearer)

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add the features of images to the Gaussians."""
        self.alignment.add(task, self.features, images)

    def features(self, batch: Batch) -> Tensor:
        """Class token [B, D] of the trained ViT."""
        features_BD: Tensor = self.vit(batch.images_BCHW).pooled_BD
        return features_BD

    def aligned_logits(self, features_ND: Tensor) -> Tensor:
        """What the alignment takes the cross-entropy of [N, K]."""
        tasks, temperature = self.index + 1, self.options.temperature
        return normalised(self.head(features_ND), self.task_of_class_K, tasks, temperature)

    def nearer(self, features_ND: Tensor, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Move what was drawn of old classes a little towards 0."""
        settings = (self.alignment.gaussians, self.task_of_class_K, self.index)
        return nearer(*settings, features_ND, labels_N, generator)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K] of the aligned head."""
        logits_BK: Tensor = self.head(self.features(batch))
        return logits_BK

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy of the heads as trained."""
        return masked_cross_entropy(self.raw(self.features(batch)), batch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The newest head at `lr`, the ViT at its share of it."""
        return [{"params": self.raw.new, "lr": lr}, *slow_group(self.vit, lr, self.options.share)]
