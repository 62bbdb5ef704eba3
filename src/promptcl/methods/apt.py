"""APT: one vector added to the key and one to the value of the class token, in every block (arXiv 2503.07979, 2025).

Additive prompt tuning: no query, no more tokens, one pass. The vectors go on from task to task, and answers are given
with their moving average over tasks; the head is trained with the present ones, as in the public code.
Differs from the code in: the layer norm in front of its head is one without weights, since its optimiser never moves
them; the last test batch is not dropped.
B images, N tokens, D width, L blocks, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone, Change
from promptcl.config import Section
from promptcl.layers import GrowingCosine
from promptcl.layers.prompts import check_class_token, groups, initialise
from promptcl.methods._base import Batch, Method, Stage, TaskView, masked_cross_entropy


class APTOptions(Section):
    """Settings of APT."""

    average: float = Field(default=0.7, ge=0, le=1)
    """Weight of the earlier average, when a task ends: 0.7 for CIFAR-100 and CUB, 0.8 for ImageNet-R; 0: no average."""
    init_scale: float = Field(default=0.02, gt=0)
    """Standard deviation of the values that a vector starts with."""
    prompt_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the vectors; null: the one of the head."""


class Model(Method):
    """Vectors for keys and values of every block, their average, and rows of length 1 for each class."""

    about = "a vector for keys and one for values of each block, head; 1 pass"
    Options = APTOptions
    options: APTOptions
    average_L2D: Tensor

    def __init__(self, options: APTOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw the vectors."""
        super().__init__(options, backbone, generator)
        check_class_token(backbone)
        shape = (backbone.depth, 2, backbone.width)
        self.vectors_L2D = nn.Parameter(initialise(shape, "normal", options.init_scale, generator))
        self.register_buffer("average_L2D", self.vectors_L2D.detach().clone())
        self.head = GrowingCosine(backbone.width)

    def grow(self, task: TaskView) -> None:
        """Append head rows; the vectors never grow."""
        _ = task.index  # refuses a stream without boundaries, as the average is over tasks
        self.head.grow(task.new_classes, task.generator)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train the vectors and the head; then the vectors join the average."""
        yield Stage(task.new, replay=task.memory)
        kept = self.options.average if task.index else 0.0
        self.average_L2D.copy_(kept * self.average_L2D + (1 - kept) * self.vectors_L2D)

    def features(self, backbone: Backbone, batch: Batch, vectors_L2D: Tensor) -> Tensor:
        """Class token [B, D] with the vectors, normalised once more."""
        inserts = []
        for layer, (key_D, value_D) in enumerate(vectors_L2D):
            inserts.append(Change(layer, "k", partial(_add_to_class_token, key_D)))
            inserts.append(Change(layer, "v", partial(_add_to_class_token, value_D)))
        pooled_BD: Tensor = backbone(batch.images_BCHW, inserts).pooled_BD
        return F.layer_norm(pooled_BD, pooled_BD.shape[1:])

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K], with the average."""
        logits_BK: Tensor = self.head(self.features(backbone, batch, self.average_L2D))
        return logits_BK

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy with the present vectors."""
        return masked_cross_entropy(self.head(self.features(backbone, batch, self.vectors_L2D)), batch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head at `lr`, the vectors at `prompt_lr`."""
        return groups(self, self.head, lr, self.options.prompt_lr)


def _add_to_class_token(vector_D: Tensor, x_BND: Tensor, y_BND: Tensor) -> Tensor:
    """Keys or values with `vector_D` added to those of the class token, which is the first."""
    return torch.cat([y_BND[:, :1] + vector_D, y_BND[:, 1:]], 1)
