"""E2-LoRA: updates of full rank whose unused directions the next task may use (ICML 2026, arXiv 2605.27482).

After a task its update of each layer is rotated so that what it does sits in few columns; when the next task begins,
each earlier one keeps its first columns and hands on the others as a fixed basis in which the new task may write.
Distillation keeps old logits; the head is aligned with class Gaussians and goes on aligned.
Differs from the code in: the rotation is measured on the evaluation view of random images of the task; the class means
that are drawn around fall by the number of a class's own task, where the code assumes tasks of equal size.
B images, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.layers import TaskLinear
from promptcl.layers.pool import FullUpdates
from promptcl.methods._align import Alignment, AlignOptions, nearer
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy
from promptcl.methods._tasks import KnowsTasks, warn_of_known


class E2LoRAOptions(AlignOptions):
    """Settings of E2-LoRA."""

    rank: int | None = Field(default=None, ge=1)
    """Rank of the update of each layer, at most its number of outputs; null: full, 226 million numbers in the first
    task at ViT-B/16."""
    share: float = Field(default=0.05, gt=0)
    """Learning rate of the updates, as a share of that of the head."""
    distil: float = Field(default=1.0, ge=0)
    """Weight of the distillation of old logits [0.25 times tau^2, tau being 2]."""
    reset_norm: bool = True
    """Features do without the weight and bias of the final norm, as in the code; if the class token is read."""
    images: int = Field(default=64, ge=1)
    """Images on which the rotation is measured."""


class Model(KnowsTasks):
    """Pools of updates of qkv and fc1, and one head."""

    about = "updates of full rank of qkv and fc1, aligned head; 1 pass"
    Options = E2LoRAOptions
    options: E2LoRAOptions

    def __init__(self, options: E2LoRAOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw A of the first task."""
        super().__init__(options, backbone, generator)
        self.updates = FullUpdates(backbone, options.rank, generator)
        self.head, self.alignment = TaskLinear(backbone.width), Alignment(backbone.width, options, jitter=2e-4)

    def grow(self, task: TaskView) -> None:
        """Append head rows; B is trained in the first task only."""
        super().grow(task)
        self.head.grow(task.new_classes, task.generator)
        self.alignment.grow(task.new_classes)
        for pool in self.updates.pools:
            pool.up_LoR.requires_grad_(task.index == 0)

    def features(self, backbone: Backbone, batch: Batch, task: int | None = None) -> Tensor:
        """Class token [B, D] of the model with the updates."""
        pooled_BD: Tensor = backbone(batch.images_BCHW, self.updates.inserts(backbone, task)).pooled_BD
        norm = backbone.vit.norm
        reset = self.options.reset_norm and backbone.reads_class_token and isinstance(norm, nn.LayerNorm)
        return (pooled_BD - norm.bias) / norm.weight if reset else pooled_BD

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Take over columns, train, rotate, add the class Gaussians, and align the head, but for the first task."""
        if task.index:
            self.updates.begin(task.index)
        warn_of_known(task, "no row of its head is trained on images")
        yield Stage(task.new)
        rows = torch.randperm(len(task.new), generator=task.generator)[: self.options.images]
        self.updates.reset()
        for batch in task.batches(task.new.select(rows.tolist())):
            backbone(batch.images_BCHW, [*self.updates.inserts(backbone, task.index), *self.updates.probes()])
        self.updates.end(task.index)
        self.absorb(backbone, task, task.new)
        if task.index:
            means = partial(nearer, self.alignment.gaussians, self.task_of_class_K, task.index)
            yield self.alignment.stage(task, self.head.parameters(), self.head, means)

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add the features of images to the Gaussians."""
        self.alignment.add(task, lambda batch: self.features(backbone, batch), images)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(self.features(backbone, batch))
        return logits_BK

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and what the model without this task's rows says of earlier classes."""
        logits_BK, old = self.head(self.features(backbone, batch, self.index)), len(self.head.past_bias_K)
        loss = masked_cross_entropy(logits_BK, batch)
        if not (old and self.options.distil):
            return loss
        with torch.no_grad():
            guide_BK = self.head(self.features(backbone, batch))[:, :old]
        pair = (logits_BK[:, :old] / 2).log_softmax(1), (guide_BK / 2).log_softmax(1)
        return loss + self.options.distil * F.kl_div(*pair, log_target=True, reduction="batchmean")

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The newest head rows at `lr`, A and in the first task B at a share of it."""
        updates = [p for p in self.updates.parameters() if p.requires_grad]
        return [{"params": self.head.new, "lr": lr}, {"params": updates, "lr": lr * self.options.share}]
