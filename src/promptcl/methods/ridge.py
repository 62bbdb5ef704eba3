"""Ridge: ridge regression on the frozen features from running sums, nothing trained by gradients (baseline)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Section
from promptcl.layers import RidgeHead
from promptcl.methods._base import Batch, Method, Stage, TaskView


class RidgeOptions(Section):
    """Settings of the ridge regression."""

    strength: float = Field(default=0.01, gt=0)
    """Ridge penalty, as a share of each feature's variance."""


class Model(Method):
    """A ridge classifier on frozen features: `l2p_ridge` without its prompts."""

    Options = RidgeOptions

    def __init__(self, options: RidgeOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.ridge = RidgeHead(backbone.width, options.strength)

    def grow(self, task: TaskView) -> None:
        """Make room for new classes."""
        self.ridge.grow(task.new_classes)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Add the images to the sums and solve; nothing is trained by steps."""
        self.absorb(backbone, task.batches())
        yield from ()

    def absorb(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """Add images to the sums and solve."""
        for batch in batches:
            self.ridge.add(batch.query_BD, batch.labels_B)
        self.ridge.solve()

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Estimated one-hot labels [B, K]."""
        logits_BK: Tensor = self.ridge(batch.query_BD)
        return logits_BK
