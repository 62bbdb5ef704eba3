"""Co2L: contrastive learning with new classes as anchors, and a head on the frozen result (Cha et al., ICCV 2021).

arXiv 2106.14413. Two views (the paper's with `data.jitter=true`) of new and remembered images are told apart by class,
a projector in between; relations among a batch's images shall stay as before the task. Then a head is trained anew on
class tokens, classes drawn equally often. Differs from the code: both terms are means (there the first is times 7.1 and
over all rows: `base_temperature`); each task has a new optimiser. B images, N features, D width, K classes so far.
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
from promptcl.layers import GrowingLinear, falling
from promptcl.layers.losses import relation_distillation, supervised_contrast
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.methods._tuned import Tuned, TunedOptions, slow_group
from promptcl.runtime.device import send


class Co2LOptions(TunedOptions):
    """Settings of Co2L."""

    projection: int = Field(default=128, ge=1)
    """Width of what is compared."""
    temperature: float = Field(default=0.5, gt=0)
    """Temperature of the contrast."""
    base_temperature: float | None = Field(default=None, gt=0)
    """Multiply the contrast by the temperature over this: 0.07 in the code; null: by nothing."""
    relations: float = Field(default=1.0, ge=0)
    """Weight of the distillation of relations."""
    relation_temperature: float = Field(default=0.2, gt=0)
    """Temperature of relations as the model sees them."""
    old_temperature: float = Field(default=0.01, gt=0)
    """Temperature of relations as they were seen before."""
    head_epochs: int = Field(default=100, ge=1)
    """Epochs of the head over the features of new and remembered images."""
    head_batch: int = Field(default=256, ge=1)
    """Features of a step."""
    head_lr: float = Field(default=0.1, gt=0)
    """Learning rate of the head."""
    head_falls: bool = False
    """Let it fall to a fifth after 60, 75 and 90 % of the steps, as in the code; else as `train.schedule` says."""


class Model(Tuned):
    """The ViT, a projector D -> D -> 128, and a head."""

    about = "the ViT and a projector by contrast, head; 1 pass"
    Options = Co2LOptions
    options: Co2LOptions
    masked = False

    def __init__(self, options: Co2LOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw the projector as torch.nn.Linear does."""
        super().__init__(options, backbone, generator)
        self.up, self.down = GrowingLinear(backbone.width, "uniform"), GrowingLinear(backbone.width, "uniform")
        self.up.grow(backbone.width, generator)
        self.down.grow(options.projection, generator)
        self.teacher: list[Model] = []
        """The model before the task, while one is learned; in a list, so that it is not saved."""

    def grow(self, task: TaskView) -> None:
        """Append rows to the head; relations are held from task to task, so tasks have to end."""
        _ = task.index
        super().grow(task)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train ViT and projector, then the head alone."""
        o = self.options
        if self.known and o.relations:
            self.teacher = [copy.deepcopy(self)]
        # with a training mask, which means nothing here, the memory holds images of this task too
        images = task.new if task.memory is None else task.new + task.memory.without(task.new)
        labels_N = task.collect(lambda batch: batch.labels_B[:, None].float(), images)[:, 0].long()
        anchors_K = torch.zeros(self.classes, dtype=torch.bool, device=labels_N.device)
        anchors_K[labels_N[: len(task.new)]] = True
        yield Stage(images, lambda _, batch: self.contrast(batch, anchors_K), together=0)
        self.teacher = []
        self.new_head(task.generator)
        features_ND = task.collect(self.features, images)
        weights_N = (1 / torch.bincount(labels_N)[labels_N]).cpu()

        def loss(backbone: Backbone, batch: Batch) -> Tensor:
            index_B = send(torch.multinomial(weights_N, o.head_batch, True, generator=batch.generator), labels_N.device)
            return F.cross_entropy(self.head(features_ND[index_B]), labels_N[index_B])

        head = [{"params": list(self.head.parameters()), "weight_decay": 0.0}]
        rate, steps = falling(0.2, 0.6, 0.75, 0.9), o.head_epochs * -(-len(images) // o.head_batch)
        yield Stage(None, loss, head, steps=steps, lr=o.head_lr, rate=rate if o.head_falls else None)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The projector at `lr`, the ViT at its share of it."""
        projector = [*self.up.parameters(), *self.down.parameters()]
        return [{"params": projector, "lr": lr}, *slow_group(self.vit, lr, self.options.share)]

    def embedded(self, images_BCHW: Tensor) -> Tensor:
        """Projections of length 1."""
        return F.normalize(self.down(F.relu(self.up(self.vit(images_BCHW).pooled_BD))))

    def contrast(self, batch: Batch, anchors_K: Tensor) -> Tensor:
        """The loss of ViT and projector: two views of each image, told apart by class, related as before."""
        o, views = self.options, torch.cat([batch.images_BCHW, batch.another_view()])
        unit_BD, labels_B = self.embedded(views), batch.labels_B.repeat(2)
        loss = supervised_contrast(unit_BD, labels_B, anchors_K[labels_B], o.temperature)
        if o.base_temperature is not None:
            loss = loss * (o.temperature / o.base_temperature)
        for teacher in self.teacher:
            with torch.no_grad():
                old_BD = teacher.embedded(views)
            related = relation_distillation(old_BD, unit_BD, o.old_temperature, o.relation_temperature)
            loss = loss + o.relations * related
        return loss
