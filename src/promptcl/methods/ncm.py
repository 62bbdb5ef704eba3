"""NCM: nearest class mean (cosine) of the frozen features, nothing trained (Janson et al., arXiv 2210.04428)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Section
from promptcl.layers.heads import ClassMeans
from promptcl.methods._base import Batch, Method


class NCMOptions(Section):
    """No settings."""


class Model(Method):
    """One mean feature a class."""

    Options = NCMOptions
    needs_images = False
    rehearses = False

    def __init__(self, options: NCMOptions, width: int, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, width, generator)
        self.means = ClassMeans(width)

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Make room for more means."""
        self.means.grow(classes)

    def finish(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """Add the task's images to their classes' means."""
        for batch in batches:
            self.means.add(batch.query_BD, batch.labels_B)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cosine [B, K] of the frozen feature with each class mean."""
        logits_BK: Tensor = self.means(batch.query_BD)
        return logits_BK

    @property
    def trained(self) -> bool:
        """Means take no gradient steps."""
        return False
