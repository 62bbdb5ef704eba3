"""HiDe-Prompt: slots of prefixes found by a classifier of plain features (NeurIPS 2023, arXiv 2310.07234).

Task t trains a slot of prefixes; at test a small classifier on the plain class token (task-identity inference, TII)
says the class, its task's slot is used, and the head answers. Both heads are aligned with a Gaussian of each class.
Differs from the code in: one pass trains both models, and they are aligned alike; one Gaussian a class, not ten
centroids; no slots are mixed in a batch. B images, S tasks so far, G layers, L rows, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone, Prefix
from promptcl.data import ImageSet
from promptcl.layers import GrowingLinear, ResidualHead
from promptcl.layers.losses import contrast
from promptcl.layers.prompts import check_layers
from promptcl.layers.slots import Slots
from promptcl.methods._align import Alignment, AlignOptions
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy
from promptcl.methods._tasks import KnowsTasks


class HiDeOptions(AlignOptions):
    """Settings of HiDe-Prompt."""

    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Blocks with prefixes, from 0."""
    length: int = Field(default=5, ge=1)
    """Rows of keys, and of values: 5 for CIFAR-100, 20 for ImageNet-R."""
    momentum: float = Field(default=0.01, ge=0, le=1)
    """Share of the mean of the earlier slots in the slot of a task [m]."""
    contrast: float = Field(default=0.1, ge=0)
    """Weight of the contrastive term."""
    head_share: float = Field(default=0.1, gt=0)
    """Learning rate of the head, as a share of that of the prefixes."""
    finder_share: float = Field(default=1 / 60, gt=0)
    """Learning rate of the classifier that finds the task, as a share of that of the prefixes."""
    finder_width: int = Field(default=2, ge=1)
    """Its hidden width, in widths of a token."""


class Model(KnowsTasks):
    """Slots of prefixes, a head on the prompted class token, and the classifier that finds the slot."""

    about = "prefixes a task, aligned head, aligned task finder; 2 passes"
    task_prompts = True
    Options = HiDeOptions
    options: HiDeOptions

    def __init__(self, options: HiDeOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw the layers of the classifier; slots come with the tasks."""
        super().__init__(options, backbone, generator)
        check_layers(options.layers, backbone.depth)
        self.slots = Slots(len(options.layers), 2, options.length, backbone.width)
        self.head = GrowingLinear(backbone.width, "normal")
        self.finder = ResidualHead(backbone.width, options.finder_width * backbone.width, generator)
        self.prompted, self.plain = Alignment(backbone.width, options), Alignment(backbone.width, options)
        self._earlier_KD = torch.empty(0, backbone.width)

    def grow(self, task: TaskView) -> None:
        """Add the last slot to the past ones, make a new one and rows of both heads."""
        super().grow(task)
        self.slots.grow(task.generator)
        for head, alignment in ((self.head, self.prompted), (self.finder, self.plain)):
            head.grow(task.new_classes, task.generator)
            alignment.grow(task.new_classes)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train slot, head and classifier, if there is a new class; then align both heads, but for the first task."""
        if task.index:
            self.slots.newest.copy_(self.slots.past[-1:])
        self._earlier_KD = self.prompted.gaussians.mean_KD[self.prompted.gaussians.known].float()
        # The contrastive term compares the images of a batch, so one process computes it.
        if task.new_classes:  # known classes keep their slots, so no image would ever see the new one
            yield Stage(task.new, together=0 if self.options.contrast else 1)
        else:
            task.warn(f"task {task.index + 1} has no new class, so `hide` trains no prefixes for it; heads are aligned")
        self.slots.newest.copy_(self.slots.mixed(self.options.momentum))
        self.absorb(backbone, task, task.new)
        if task.index:
            for head, alignment in ((self.head, self.prompted), (self.finder, self.plain)):
                yield alignment.stage(task, head.parameters(), head)

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add the features of images to the Gaussians, prompted ones as the slot of their class gives them."""
        self.plain.add(task, lambda batch: batch.query_BD, images)
        slots = self.slots.all
        self.prompted.add(task, lambda b: self.features(backbone, b, slots[self.task_of_class_K[b.labels_B]]), images)

    def features(self, backbone: Backbone, batch: Batch, slot_BG2LD: Tensor) -> Tensor:
        """Class token [B, D] seen through slots, one for each image or one for all."""
        inserts = [Prefix(layer, *slot_BG2LD[:, g].unbind(1)) for g, layer in enumerate(self.options.layers)]
        return backbone(batch.images_BCHW, inserts).pooled_BD  # type: ignore[no-any-return]

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K], each image through the slot of the task that is found."""
        slot_B = self.task_of_class_K[self.finder(batch.query_BD).argmax(1)]
        self.stats.count("prompts", slot_B, self.index + 1)
        logits_BK: Tensor = self.head(self.features(backbone, batch, self.slots.all[slot_B]))
        return logits_BK

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy of both models, and the contrastive term."""
        features_BD = self.features(backbone, batch, self.slots.mixed(self.options.momentum))
        apart = contrast(self._earlier_KD, features_BD) if self.options.contrast else 0.0
        loss = masked_cross_entropy(self.head(features_BD), batch) + self.options.contrast * apart
        return loss + masked_cross_entropy(self.finder(batch.query_BD), batch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The slot at `lr`, head and classifier at their shares of it."""
        o = self.options
        shares = ((self.head, o.head_share), (self.finder, o.finder_share))
        heads = [{"params": list(head.parameters()), "lr": lr * share} for head, share in shares]
        return [{"params": [self.slots.newest], "lr": lr}, *heads]
