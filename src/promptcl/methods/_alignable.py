"""Base of the methods with prompts whose head may be aligned with class Gaussians after each task; not a method itself.

VQ-Prompt (arXiv 2410.20444) aligns its own head so and those that it compares itself with. B images, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.layers import GrowingCosine, GrowingLinear
from promptcl.methods._align import Alignment, AlignOptions
from promptcl.methods._base import Batch, Method, Stage, TaskView


class AlignableOptions(AlignOptions):
    """Settings of an alignment that is there when it is asked for."""

    align_epochs: int = Field(default=0, ge=0)
    """Epochs, from the second task on, over what is drawn of all classes, which train the head alone; 0: none."""
    align_lr: float = Field(default=0.0005, gt=0)
    """Learning rate of the alignment, which falls to 0 by a half cosine; 0.01 is too fast for Adam (docs/log.md)."""

    def unread(self) -> dict[str, Unread]:
        """The kind of Gaussians, where there are none."""
        none = {"covariance": Unread("align_epochs=0", "align_epochs=5")}
        return {**super().unread(), **({} if self.align_epochs else none)}


class Alignable(Method):
    """A head on one feature, and its alignment; where prompts go on to change, Gaussians of old classes grow old."""

    options: AlignableOptions

    def begin_head(self, head: GrowingLinear | GrowingCosine, width: int) -> None:
        """Take the head, on features of this width; to be called once, in the constructor."""
        self.head = head
        self.alignment = Alignment(width, self.options) if self.options.align_epochs else None

    def grow_head(self, task: TaskView) -> None:
        """Append head rows, and room for Gaussians."""
        self.head.grow(task.new_classes, task.generator)
        if self.alignment is not None:
            try:
                _ = task.index
            except UserError as error:
                raise UserError(f"a head is aligned where tasks end ({error}); write method.align_epochs=0") from error
            self.alignment.grow(task.new_classes)

    def align(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Add the class Gaussians, and from the second task on train the head on what is drawn; if asked to."""
        if self.alignment is not None:
            self.absorb(backbone, task, task.new)
            if task.index:
                yield self.alignment.stage(task, self.head.parameters(), self.head)

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add the features of images to the Gaussians, where there are some."""
        if self.alignment is not None:
            self.alignment.add(task, lambda batch: self.seen(backbone, batch), images)

    @abstractmethod
    def seen(self, backbone: Backbone, batch: Batch) -> Tensor:
        """What the head reads to answer [B, D]."""

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(self.seen(backbone, batch))
        return logits_BK
