"""BiC: distillation with rehearsal, then two numbers that undo the bias to the newest classes (Wu et al., CVPR 2019).

arXiv 1905.13260. A tenth of the memory of each class is never trained on; it fits alpha and beta of the newest logits,
alpha z + beta. Old logits stay, and the next task's distillation starts from corrected ones. Differs from the code: all
weights are set by `train`; half of a batch is replayed, where the code shuffles new and remembered images; alpha and
beta are fitted on all logits at once. In a task without new classes distillation weighs t / (t + 1), t tasks before,
and nothing is corrected. B images, K classes so far, M remembered images, V of them for validation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.layers.losses import distillation
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.methods._split import split
from promptcl.methods._tuned import Tuned, TunedOptions


class BiCOptions(TunedOptions):
    """Settings of BiC."""

    temperature: float = Field(default=2.0, gt=0)
    """What logits are divided by in the distillation."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share of the memory of each class that fits the correction, and is not trained on."""
    bias_steps: int = Field(default=200, ge=0)
    """Steps in which alpha and beta are fitted; 0: no correction."""
    bias_lr: float = Field(default=0.1, gt=0)
    """Learning rate of alpha and beta."""
    bias_decay: float = Field(default=0.1, ge=0)
    """Half of it times the square of beta joins the loss that fits both."""


class Model(Tuned):
    """The ViT and a head, and the correction of its newest logits."""

    about = "the ViT, head, two numbers against its bias; 1 pass"
    Options = BiCOptions
    options: BiCOptions
    masked = False

    def __init__(self, options: BiCOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start without correction."""
        super().__init__(options, backbone, generator)
        self.alpha, self.beta = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.first = self.first_before = 0
        """First class of those that are corrected, now and before the newest task."""
        self.teacher: list[Model] = []
        """The model before the task, while one is learned; in a list, so that it is not saved."""

    def grow(self, task: TaskView) -> None:
        """Append rows to the head; the newest classes are corrected, so tasks have to end."""
        self.tasks_before = task.index
        self.first_before, self.first = self.first, self.classes
        super().grow(task)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Set images aside, train on the others, fit the correction on those."""
        if self.known:
            teacher = copy.deepcopy(self)
            teacher.first = self.first_before
            self.teacher = [teacher]
        self.alpha.fill_(1)
        self.beta.zero_()
        parts = split(task, self.options.validation, "method.name=bic")
        yield Stage(parts.train, replay=parts.replay)
        self.teacher = []
        task.keep("aside", parts.aside_N1)
        if not (task.new_classes and parts.replay is not None and self.options.bias_steps):
            return
        labels_V = task.collect(lambda batch: batch.labels_B[:, None].float(), parts.validation).flatten().long()
        if len((labels_V >= self.first).unique()) < 2:  # of one kind alone, alpha and beta would run away
            task.warn("the memory sets no image of old or none of new classes aside, so bic corrects nothing")
            return
        logits_VK = task.collect(lambda batch: super(Model, self).logits(backbone, batch), parts.validation)
        fit = [{"params": [self.alpha, self.beta], "weight_decay": 0.0}]
        o = self.options
        yield Stage(
            *(None, lambda backbone, batch: self.bias_loss(logits_VK, labels_V), fit), steps=o.bias_steps, lr=o.bias_lr
        )

    def bias_loss(self, logits_VK: Tensor, labels_V: Tensor) -> Tensor:
        """What alpha and beta are fitted by, given logits that are not corrected."""
        decay = self.options.bias_decay / 2 * self.beta.square().sum()
        return F.cross_entropy(self.corrected(logits_VK), labels_V) + decay

    def corrected(self, logits_BK: Tensor) -> Tensor:
        """The logits [B, K], those of the newest classes times alpha plus beta."""
        new_K = torch.arange(logits_BK.shape[1], device=logits_BK.device) >= self.first
        return torch.where(new_K, logits_BK * self.alpha + self.beta, logits_BK)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Corrected logits [B, K]."""
        return self.corrected(super().logits(backbone, batch))

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy over all classes and distillation of the old ones, weighed by how many there are of each."""
        logits_BK = super().logits(backbone, batch)
        loss = F.cross_entropy(logits_BK, batch.labels_B)
        for teacher in self.teacher:
            with torch.no_grad():
                old_BK = teacher.logits(backbone, batch)[:, : self.known]
            old = self.old_share()
            loss = (1 - old) * loss + old * distillation(old_BK, logits_BK[:, : self.known], self.options.temperature)
        return loss

    def old_share(self) -> float:
        """Weight of the distillation: the share of old classes, or of old tasks where none is new."""
        if self.known < self.classes:
            return self.known / self.classes
        return self.tasks_before / (self.tasks_before + 1)
