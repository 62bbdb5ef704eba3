"""Heads that are trained task by task, and a copy of them that is aligned with class Gaussians and answers (SLCA).

The next task goes on from the heads as they were before the alignment. Not a method itself. N features, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from pydantic import Field
from torch import Generator, Tensor

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.data import ImageSet
from promptcl.layers import GrowingLinear, TaskLinear
from promptcl.methods._align import Alignment, AlignOptions, normalised
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.methods._tasks import KnowsTasks, warn_of_known


class AlignedOptions(AlignOptions):
    """Settings of heads that are aligned."""

    temperature: float | None = Field(default=0.1, gt=0)
    """The alignment divides logits by this times the mean norm of those of each task; null: by nothing."""

    def unread(self) -> dict[str, Unread]:
        """The temperature, where no head is aligned."""
        found = super().unread()
        return found if self.align_epochs else {**found, "temperature": Unread("align_epochs=0", "align_epochs=5")}


class AlignedHeads(KnowsTasks):
    """The heads as trained (`raw`), and the aligned head."""

    options: AlignedOptions

    def begin_heads(self, width: int) -> None:
        """Make both heads and the Gaussians of features [D], without a class."""
        self.raw, self.head = TaskLinear(width), GrowingLinear(width)
        self.alignment = Alignment(width, self.options)

    def grow(self, task: TaskView) -> None:
        """Append rows to both heads."""
        super().grow(task)
        for part in (self.raw, self.head):
            part.grow(task.new_classes, task.generator)
        self.alignment.grow(task.new_classes)

    @abstractmethod
    def features(self, backbone: Backbone, batch: Batch) -> Tensor:
        """What the heads read [B, D]."""

    @abstractmethod
    def aged(self, features_ND: Tensor, labels_N: Tensor, generator: Generator) -> Tensor:
        """Features that were drawn, changed as those of old classes are since."""

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train slowly, add the class Gaussians, and align a copy of the heads, but for the first task."""
        warn_of_known(task, "no row of its head is trained on images")
        yield Stage(task.new)
        self.absorb(backbone, task, task.new)
        for own, raw in zip(self.head.parameters(), self.raw.rows(), strict=True):
            own.copy_(raw)
        if task.index:
            yield self.alignment.stage(task, self.head.parameters(), self.aligned_logits, self.aged)

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add the features of images to the Gaussians."""
        self.alignment.add(task, lambda batch: self.features(backbone, batch), images)

    def aligned_logits(self, features_ND: Tensor) -> Tensor:
        """What the alignment takes the cross-entropy of [N, K]."""
        tasks, temperature = self.index + 1, self.options.temperature
        return normalised(self.head(features_ND), self.task_of_class_K, tasks, temperature)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K] of the aligned head."""
        logits_BK: Tensor = self.head(self.features(backbone, batch))
        return logits_BK
