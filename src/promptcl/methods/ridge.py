"""Ridge: ridge regression on the frozen features from running sums, nothing trained by gradients (baseline)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Section
from promptcl.layers.heads import RidgeHead
from promptcl.methods._base import Batch, Method


class RidgeOptions(Section):
    """Settings."""

    strength: float = Field(default=0.01, gt=0)
    """Ridge penalty, as a share of each feature's variance."""


class Model(Method):
    """`l2p_ridge` without prompts: what is left when nothing adapts to the data."""

    Options = RidgeOptions
    needs_images = False
    rehearses = False

    def __init__(self, options: RidgeOptions, width: int, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, width, generator)
        self.ridge = RidgeHead(width, options.strength)

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Make room for more classes."""
        self.ridge.grow(classes)

    def finish(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """Add the task's images to the sums and solve."""
        for batch in batches:
            self.ridge.add(batch.query_BD, batch.labels_B)
        self.ridge.solve()

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Estimated one-hot labels [B, K]."""
        logits_BK: Tensor = self.ridge(batch.query_BD)
        return logits_BK

    @property
    def trained(self) -> bool:
        """Sums take no gradient steps."""
        return False
