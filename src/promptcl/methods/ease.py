"""EASE: an adapter and a feature space for each task, prototypes in all of them (CVPR 2024, arXiv 2403.12030).

Each task trains an adapter with a cosine head that is thrown away. A class has a prototype, its mean feature, in the
space of each adapter; those of old classes in newer spaces, whose images are gone, are made of the prototypes of newer
classes, by similarity in their own space. As many passes an image as there were tasks.
Differs from the code in: no dropout in the adapters; images of a known class give exact prototypes in newer spaces.
S tasks so far (spaces), B images, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.config import Section
from promptcl.data import ImageSet
from promptcl.layers import ClassMeans, CosineHead, cosine
from promptcl.methods._adapters import TaskAdapters
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy


class EASEOptions(Section):
    """Settings of EASE."""

    size: int = Field(default=64, ge=1)
    """Inner width of an adapter."""
    others: float = Field(default=0.1, ge=0)
    """Weight of the mean cosine in the spaces of other tasks, beside that in the space of the class's own task."""


class Model(TaskAdapters):
    """Adapters of all tasks, and a prototype of each class in the space of each."""

    about = "adapters a task, prototypes in all their spaces; 1 pass a task"
    Options = EASEOptions
    options: EASEOptions
    prototypes_SKD: Tensor

    def __init__(self, options: EASEOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no adapter."""
        super().__init__(options, backbone, generator)
        self.begin(backbone, options.size, generator)
        self.head, self.means = CosineHead(backbone.width), nn.ModuleList()
        self.register_buffer("prototypes_SKD", torch.zeros(0, 0, backbone.width))

    def grow(self, task: TaskView) -> None:
        """Make an adapter, a training head, and room for prototypes."""
        super().grow(task)
        spaces, classes, width = len(self.adapters), len(self.task_of_class_K), self.prototypes_SKD.shape[2]
        self.means.append(ClassMeans(width))
        for space, means in enumerate(self.means):
            cast(ClassMeans, means).grow(classes if space == spaces - 1 else task.new_classes)
        self.head = CosineHead(width)
        self.head.grow(classes, task.generator)
        self.prototypes_SKD = self.prototypes_SKD.new_zeros(spaces, classes, width)

    def trained_head(self) -> list[nn.Parameter]:
        """The training head."""
        return list(self.head.parameters())

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train the adapter, then make prototypes."""
        yield Stage(task.new)
        self.absorb(backbone, task, task.new)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy of the training head."""
        return masked_cross_entropy(self.head(self.feature(backbone, batch, self.index)), batch)

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add images to the means of their classes in all spaces."""
        for batch in task.batches(images):
            for space, means in enumerate(self.means):
                cast(ClassMeans, means).add(self.feature(backbone, batch, space), batch.labels_B)
        self.solve()

    def solve(self) -> None:
        """Set all prototypes: means where there are images, else what similar classes say."""
        counts = [cast(ClassMeans, means).count_K.value for means in self.means]
        for space, (means, count_K) in enumerate(zip(self.means, counts, strict=True)):
            sum_KD = cast(ClassMeans, means).sum_KD.value
            self.prototypes_SKD[space] = sum_KD / count_K.clamp_min(1)[:, None]
        for space, count_K in enumerate(counts):
            for own in range(space):
                old_K = (self.task_of_class_K == own) & (count_K == 0) & (counts[own] > 0)
                new_K = (count_K > 0) & (counts[own] > 0)
                if old_K.any() and new_K.any():
                    there, here = self.prototypes_SKD[own], self.prototypes_SKD[space]
                    here[old_K] = guess(there[old_K], there[new_K], here[new_K])

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cosines [B, K] in the space of each class's own task, plus the weighted ones in the others."""
        features = [self.feature(backbone, batch, space) for space in range(len(self.adapters))]
        pairs = zip(features, self.prototypes_SKD, strict=True)
        cosine_SBK = torch.stack([cosine(f_BD, p_KD) for f_BD, p_KD in pairs])
        own_BK = cosine_SBK.gather(0, self.task_of_class_K.expand_as(cosine_SBK[:1]))[0]
        return own_BK + self.options.others / max(len(features) - 1, 1) * (cosine_SBK.sum(0) - own_BK)


def guess(old_XD: Tensor, new_YD: Tensor, there_YD: Tensor) -> Tensor:
    """Prototypes [X, D] of old classes in another space: those of new classes there, weighted by their similarity here.

    The weights are a softmax of cosines without a temperature, as in the code: nearly equal ones.
    """
    return cosine(old_XD, new_YD).softmax(1) @ there_YD
