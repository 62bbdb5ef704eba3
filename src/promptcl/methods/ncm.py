"""NCM: nearest class mean (cosine) of the frozen features, nothing trained (Janson et al., arXiv 2210.04428)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Section
from promptcl.layers import ClassMeans
from promptcl.methods._base import Batch, Method, Stage, TaskView


class NCMOptions(Section):
    """NCM has no settings."""


class Model(Method):
    """The mean feature of each class, and nothing else."""

    Options = NCMOptions

    def __init__(self, options: NCMOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.means = ClassMeans(backbone.width)

    def grow(self, task: TaskView) -> None:
        """Make room for the means of new classes."""
        self.means.grow(task.new_classes)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Add the images to the means of their classes; nothing is trained."""
        self.absorb(backbone, task.batches())
        yield from ()

    def absorb(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """Add images to the means of their classes."""
        for batch in batches:
            self.means.add(batch.query_BD, batch.labels_B)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cosine [B, K] of the frozen feature with each class mean."""
        logits_BK: Tensor = self.means(batch.query_BD)
        return logits_BK
