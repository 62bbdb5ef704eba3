"""TUNA: an adapter for each task, chosen by confidence, and one merged from all (ICCV 2025, arXiv 2508.08165).

Each task trains adapters and rows of a cosine head, which is aligned with class Gaussians. At test the adapters whose
answer has the least entropy answer, together with the universal ones: of each number the largest of those that agree
with the sign of the sum over tasks. One pass more an image than there were tasks.
Its official code could not be read: the form of the orthogonality term and the training settings are from a summary.
S tasks so far, B images, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import exp
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.layers import TaskCosine
from promptcl.layers.adapters import Adapters
from promptcl.methods._adapters import TaskAdapters
from promptcl.methods._align import Alignment, AlignOptions
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy
from promptcl.methods._tasks import warn_of_known


class TUNAOptions(AlignOptions):
    """Settings of TUNA."""

    size: int = Field(default=16, ge=1)
    """Inner width of an adapter."""
    scale: float = Field(default=20.0, gt=0)
    """What the cosines of the head are multiplied by."""
    apart: float = Field(default=1e-3, ge=0)
    """Weight of the inner products of the adapters' outputs with those of earlier tasks; it falls by e each task."""


class Model(TaskAdapters):
    """Adapters of all tasks and one cosine head."""

    about = "adapters a task, aligned head; 1 pass a task and 1 more"
    Options = TUNAOptions
    options: TUNAOptions

    def __init__(self, options: TUNAOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no adapter."""
        super().__init__(options, backbone, generator)
        self.begin(backbone, options.size, generator)
        self.head = TaskCosine(backbone.width, options.scale)
        self.alignment = Alignment(backbone.width, options)

    def grow(self, task: TaskView) -> None:
        """Make adapters, head rows and room for Gaussians."""
        super().grow(task)
        self.head.grow(task.new_classes, task.generator)
        self.alignment.grow(task.new_classes)

    def trained_head(self) -> list[nn.Parameter]:
        """The head rows of the newest task."""
        return self.head.new

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train the adapters, add the class Gaussians, and align the head, but for the first task."""
        warn_of_known(task, "no row of its head is trained on images")
        yield Stage(task.new)
        self.absorb(backbone, task, task.new)
        if task.index:
            yield self.alignment.stage(task, self.head.all, self.head)

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add the features of images, through the newest adapters, to the Gaussians."""
        self.alignment.add(task, lambda batch: self.feature(backbone, batch, self.index), images)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and how much the adapters write where those of earlier tasks do."""
        loss = masked_cross_entropy(self.head(self.feature(backbone, batch, self.index)), batch)
        if len(self.adapters) > 1 and self.options.apart:
            ups = [cast(Adapters, adapters).up_LrD for adapters in list(self.adapters)[:-1]]
            overlap = torch.stack([(self.present.up_LrD @ up_LrD.mT).abs().sum() for up_LrD in ups]).sum()
            loss = loss + self.options.apart * exp(-len(self.adapters)) * overlap
        return loss

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Log-probabilities [B, K]: the mean of the surest adapters, image by image, and of the universal ones."""
        each = [self.head(self.feature(backbone, batch, n)).softmax(1) for n in range(len(self.adapters))]
        shared_BK: Tensor = self.head(self.universal_feature(backbone, batch.images_BCHW)).softmax(1)
        return ((surest(torch.stack(each)) + shared_BK) / 2).log()

    def universal_feature(self, backbone: Backbone, images_BCHW: Tensor) -> Tensor:
        """Class token [B, D] of the model with the universal adapters."""
        named = [dict(adapters.named_parameters()) for adapters in self.adapters]
        merged = {name: universal(torch.stack([own[name] for own in named])) for name in named[0]}
        pooled_BD: Tensor = backbone(images_BCHW, self.present.inserts(merged)).pooled_BD
        return pooled_BD


def surest(probable_SBK: Tensor) -> Tensor:
    """For each image the probabilities [B, K] of least entropy among those of all adapters."""
    entropy_SB = -torch.xlogy(probable_SBK, probable_SBK).sum(2)
    best_1BK = entropy_SB.argmin(0)[None, :, None].expand_as(probable_SBK[:1])
    return probable_SBK.gather(0, best_1BK)[0]


def universal(values_SX: Tensor) -> Tensor:
    """Of each number the one of largest magnitude among those that have the sign of the sum over tasks."""
    sign_X = values_SX.sum(0).sign()
    agree_SX = values_SX.sign() == sign_X
    return sign_X * values_SX.abs().masked_fill(~agree_SX, 0).amax(0)
