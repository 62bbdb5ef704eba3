"""Linear: a linear head on the frozen features, trained task by task, masked or not (baseline)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Section
from promptcl.layers.heads import GrowingLinear
from promptcl.methods._base import Batch, Method


class LinearOptions(Section):
    """Settings."""

    head_init: Literal["zero", "uniform"] = "zero"


class Model(Method):
    """A growing linear head."""

    Options = LinearOptions
    needs_images = False

    def __init__(self, options: LinearOptions, width: int, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, width, generator)
        self.head = GrowingLinear(width, options.head_init)

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append head rows."""
        self.head.grow(classes, generator)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(batch.query_BD)
        return logits_BK
