"""Base of the methods that compute their classifier from frozen features, in closed form: ncm, ridge, ranpac.

Not a method itself. B images of a batch, F length of a feature, K classes so far, N images so far.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone, Feature
from promptcl.config import Section
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.layers import Rows
from promptcl.methods._base import Batch, Method, OutOfFold, Stage, TaskView


class FrozenOptions(Section):
    """Settings of all classifiers on frozen features."""

    features: Feature = "class"
    """What of an image is read: `class`, the class token after the last block, or `deep`, the class tokens after each
    of the last blocks and the mean of the patches (`Backbone.deep`)."""
    rows: int = Field(default=0, ge=0)
    """Features kept of the images learned, so that images can be taken away again (forget, undo, correct) and answers
    be calibrated on all of them: those of at most so many images. 0, or more images than that: only sums are kept.
    `anacp`, `fsa` and all that is adapted keep nothing else, and refuse it."""


class FrozenFeatures(Method):
    """A classifier that is a function of the features and class ids of all images learned, in any order."""

    options: FrozenOptions

    def __init__(self, options: FrozenOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.width = backbone.feature_width(options.features)
        """Length of the frozen feature."""
        self.rows = Rows(self.width, options.rows)
        self.over = False
        """Whether it was said that there are more images than rows are kept for."""

    @abstractmethod
    def grow_head(self, classes: int) -> None:
        """Make room for `classes` new classes."""

    @abstractmethod
    def add(self, features_BF: Tensor, labels_B: Tensor) -> None:
        """Add images to the sums."""

    @abstractmethod
    def solve(self) -> None:
        """Make the classifier from the sums."""

    @abstractmethod
    def fit(self, features_NF: Tensor, labels_N: Tensor) -> None:
        """Make the classifier from all images at once, without sums."""

    @abstractmethod
    def restart(self) -> None:
        """Become as new, without classes, but for what was trained."""

    def begin_sums(self) -> None:
        """Called once, when rows are no longer kept: make room for sums where there is none."""

    @classmethod
    def reads(cls, options: FrozenOptions) -> tuple[str, ...]:
        """Nothing of training and replaying."""
        return ()

    def query(self, backbone: Backbone, images_BCHW: Tensor) -> Tensor:
        """The feature [B, F] of the frozen model that `features` names."""
        return backbone.query(images_BCHW, self.options.features)

    def grow(self, task: TaskView) -> None:
        """Make room for new classes, and for what is kept of the new images."""
        self.over = bool(self.options.rows) and not self.rows.keeping  # an earlier task has said so
        if self.rows.keeping and not self.rows.fits(task.count):
            features_NF, labels_N = self.rows.filled
            self.begin_sums()
            if len(labels_N):
                self.add(features_NF, labels_N)
            self.rows.drop()
        self.grow_head(task.new_classes)
        if self.rows.keeping:
            self.rows.grow(task.count)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Add the images and solve; nothing is trained by steps."""
        if self.options.rows and not self.rows.keeping and not self.over:
            self.over = True
            task.warn(
                f"this learner has more images than method.rows={self.options.rows}: it keeps only sums from now on, "
                "so nothing can be forgotten, undone or moved any more, and `unknown` is as it was measured last"
            )
        self.absorb(backbone, task, task.new)
        yield from ()

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add images and solve."""
        if not self.rows.keeping:
            for batch in task.batches(images):
                self.add(_finite(batch.query_BD), batch.labels_B)
            self.solve()
            return

        def labelled(batch: Batch) -> Tensor:
            return torch.cat([batch.labels_B[:, None].float(), _finite(batch.query_BD).float()], 1)

        table = task.collect(labelled, images)
        self.rows.add(table[:, 1:], table[:, 0].long())
        self.fit(*self.rows.filled)

    @property
    def mendable(self) -> bool:
        """Whether there is a row for every image."""
        return self.rows.keeping

    def mend(self, labels_N: Tensor, classes: int) -> None:
        """Learn the rows again with these class ids; those with -1 are dropped. Raises UserError without rows."""
        if not self.mendable:
            raise UserError(
                f"this learner keeps no features of single images (method.rows={self.options.rows}), so none can be "
                "taken away; begin one with a larger method.rows"
            )
        self.rows.relabel(labels_N.to(self.rows.labels_N.device))
        self.restart()
        self.grow_head(classes)
        if len(self.rows):
            self.fit(*self.rows.filled)

    def out_of_fold(self) -> OutOfFold | None:
        """What would be said of each image if it had not been learned; None without rows."""
        if not self.rows.keeping or len(self.rows) < 2:
            return None
        return self.left_out(*self.rows.filled)

    @abstractmethod
    def left_out(self, features_NF: Tensor, labels_N: Tensor) -> OutOfFold:
        """What is said of each image by the classifier of all others."""


def _finite(features_BF: Tensor) -> Tensor:
    """The features as they are. Raises UserError where one is no number."""
    if not features_BF.isfinite().all():
        raise UserError(
            "the ViT gives a feature that is not finite: the weights are damaged, or backbone.precision=bf16 is too "
            "coarse for them; take other weights, or backbone.precision=fp32"
        )
    return features_BF
