"""Linear: a linear head on the frozen features, trained task by task, masked or not (baseline)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Section
from promptcl.layers import GrowingLinear
from promptcl.methods._base import Batch, Method, TaskView


class LinearOptions(Section):
    """Settings of the linear head."""

    head_init: Literal["zero", "uniform"] = "zero"
    """Initial values of the rows of new classes: zeros, or torch.nn.Linear's uniform ones."""


class Model(Method):
    """A growing linear head."""

    about = "head; 1 pass"
    Options = LinearOptions

    def __init__(self, options: LinearOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.head = GrowingLinear(backbone.width, options.head_init)

    def grow(self, task: TaskView) -> None:
        """Append rows for new classes to the head."""
        self.head.grow(task.new_classes, task.generator)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(batch.query_BD)
        return logits_BK
