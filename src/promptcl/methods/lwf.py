"""LwF: on new images the outputs for old classes shall stay as they were (Li and Hoiem, arXiv 1606.09282).

No image is kept. The model as it was before the task answers for the same augmented view. Differs from the paper: there
it answers once for each image, before training. B images, K classes so far.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.layers.losses import distillation
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy
from promptcl.methods._tuned import Tuned, TunedOptions


class LwFOptions(TunedOptions):
    """Settings of LwF."""

    alpha: float = Field(default=1.0, ge=0)
    """Weight of the distillation."""
    temperature: float = Field(default=2.0, gt=0)
    """What logits are divided by in it."""
    squared: bool = False
    """Multiply the distillation by the square of the temperature, as Hinton does; the paper and its ports do not."""
    warmup: int = Field(default=0, ge=0)
    """Epochs in which, first, only the head's rows of new classes are trained."""

    def unread(self) -> dict[str, Unread]:
        """How outputs are compared, where they are not."""
        found = super().unread()
        if not self.alpha:
            found |= dict.fromkeys(("temperature", "squared"), Unread("alpha=0", "alpha=1"))
        return found


class Model(Tuned):
    """The ViT and a head."""

    about = "the ViT, head, distilled outputs; 1 pass"
    Options = LwFOptions
    options: LwFOptions

    def __init__(self, options: LwFOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.teacher: list[Model] = []
        """The model before the task, while one is learned; in a list, so that it is not saved."""

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training; nothing is replayed."""
        return ("train.",)

    def grow(self, task: TaskView) -> None:
        """Append rows to the head; the outputs so far are held from task to task, so tasks have to end."""
        _ = task.index
        super().grow(task)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train under the eyes of the model as it is now."""
        if self.known and self.options.alpha:
            self.teacher = [copy.deepcopy(self)]
        if self.known and self.options.warmup and task.new_classes:
            head = [{"params": list(self.head.parameters()), "weight_decay": 0.0}]
            yield Stage(task.new, self._new_rows, head, epochs=self.options.warmup)
        yield Stage(task.new)
        self.teacher = []

    def _new_rows(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy over the new classes alone, which moves no other row of the head, nor the ViT."""
        with torch.no_grad():
            features_BD = self.features(batch)
        labels_B = torch.where(batch.labels_B < self.known, -100, batch.labels_B - self.known)  # -100: left out
        lost = F.cross_entropy(self.head(features_BD)[:, self.known :], labels_B, reduction="sum")
        return lost / len(labels_B)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and the distillation of the outputs for old classes."""
        o, logits_BK = self.options, self.logits(backbone, batch)
        loss = masked_cross_entropy(logits_BK, batch)
        for teacher in self.teacher:
            with torch.no_grad():
                old_BK = teacher.logits(backbone, batch)[:, : self.known]
            weight = o.alpha * (o.temperature**2 if o.squared else 1)
            loss = loss + weight * distillation(old_BK, logits_BK[:, : self.known], o.temperature)
        return loss
