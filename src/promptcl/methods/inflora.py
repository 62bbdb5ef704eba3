"""InfLoRA: updates of low rank that cannot touch what earlier tasks put in (CVPR 2024, arXiv 2404.00228).

Before a task A is chosen so that its rows span the inputs of the attention, without the space that earlier tasks need
(DualGPM); B alone is trained, for keys and values of every block, and merged. One pass an image at test.
Differs from the code in: the energy threshold is a constant, since the number of tasks is not known; the first task
takes as many directions as reach it, in the code one less; inputs are of the evaluation view; unused keys are left out.
Few steps want a head of zeros. B images, N tokens, L blocks, D width, r rank, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone, Change, Insert, Weight
from promptcl.config import Section
from promptcl.layers import TaskLinear
from promptcl.layers.lora import TokenMoments, check_rank, parts_of
from promptcl.layers.merged import Merged
from promptcl.layers.subspace import directions, taken
from promptcl.methods._base import Batch, Method, Stage, TaskView
from promptcl.methods._tasks import warn_of_known


class InfLoRAOptions(Section):
    """Settings of InfLoRA."""

    rank: int = Field(default=10, ge=1)
    """Rank of the update of keys, and of that of values, in each block."""
    energy: float = Field(default=0.95, gt=0, le=1)
    """Share of the energy of a task's inputs that later tasks leave alone: 0.95 for CIFAR-100, 0.98 for ImageNet-R."""
    share: float = Field(default=1.0, gt=0)
    """Learning rate of the updates, as a share of that of the head; the code has one rate for both."""
    head_init: Literal["zero", "uniform", "normal"] = "uniform"
    """Initial values of the rows of new classes: zeros, torch.nn.Linear's uniform ones (the code), or N(0, 0.02^2)."""


class Model(Method):
    """Merged updates, the present one, the space that is taken, and a growing linear head."""

    about = "merged updates of keys and values, head; 1 pass"
    Options = InfLoRAOptions
    options: InfLoRAOptions
    merged_2LDD: Tensor
    taken_LDD: Tensor
    down_LrD: Tensor

    def __init__(self, options: InfLoRAOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no update and nothing taken."""
        super().__init__(options, backbone, generator)
        check_rank(options.rank, backbone)
        blocks, width = backbone.depth, backbone.width
        self.register_buffer("merged_2LDD", torch.zeros(2, blocks, width, width))
        self.register_buffer("taken_LDD", torch.zeros(blocks, width, width))
        self.register_buffer("down_LrD", torch.zeros(blocks, options.rank, width))
        self.up_2LDr = nn.Parameter(torch.zeros(2, blocks, width, options.rank))
        self.weights = Merged()
        self.moments, self.head = TokenMoments(backbone, "k"), TaskLinear(width, options.head_init)

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training; nothing is replayed, as earlier updates are frozen."""
        return ("train.",)

    def grow(self, task: TaskView) -> None:
        """Append head rows."""
        _ = task.index  # refuses a stream without boundaries
        self.head.grow(task.new_classes, task.generator)

    def inserts(self, backbone: Backbone) -> list[Insert]:
        """Weights with the merged updates; and the present ones in training, outside of which B is zero."""
        weights = [parts_of(backbone, layer, "qkv") for layer in range(len(self.taken_LDD))]

        def made() -> list[Tensor]:
            zero_DD = torch.zeros_like(self.taken_LDD[0])
            pairs = zip(weights, *self.merged_2LDD, strict=True)
            return [torch.cat(parts) + torch.cat([zero_DD, k_DD, v_DD]) for parts, k_DD, v_DD in pairs]

        merged = self.weights.get(made, [self.merged_2LDD, *(part for parts in weights for part in parts)])
        found: list[Insert] = [Weight(layer, "qkv", weight_oD) for layer, weight_oD in enumerate(merged)]
        for layer in range(len(weights) if self.training else 0):
            found.append(Change(layer, "k", partial(self._add, 0, layer)))
            found.append(Change(layer, "v", partial(self._add, 1, layer)))
        return found

    def _add(self, i: int, layer: int, x_BND: Tensor, y_BND: Tensor) -> Tensor:
        return y_BND + x_BND @ self.down_LrD[layer].T @ self.up_2LDr[i, layer].T

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Choose A, train B and the new head rows, merge, and take the space of the inputs."""
        for layer, mean_DD in enumerate(self.look(backbone, task)):
            self.down_LrD[layer] = directions(mean_DD, self.taken_LDD[layer].double(), self.options.rank)
        if not self.down_LrD.any():
            task.warn(f"task {task.index + 1} finds no direction that earlier ones leave, and trains the head alone")
        warn_of_known(task, "no row of its head is trained on images")
        yield Stage(task.new)
        self.merged_2LDD += self.up_2LDr @ self.down_LrD
        self.up_2LDr.zero_()
        for layer, mean_DD in enumerate(self.look(backbone, task)):
            self.taken_LDD[layer] = taken(mean_DD, self.taken_LDD[layer].double(), self.options.energy)

    def look(self, backbone: Backbone, task: TaskView) -> Tensor:
        """Mean of x x^T [L, D, D] over all tokens x of the task that enter the attention of each block."""
        self.moments.reset()
        for batch in task.batches():
            backbone(batch.images_BCHW, [*self.inserts(backbone), *self.moments.inserts()])
        return self.moments.mean_LDD

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        return self.head(backbone(batch.images_BCHW, self.inserts(backbone)).pooled_BD)  # type: ignore[no-any-return]

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head rows of the present task at `lr`, its B at a share of it."""
        return [{"params": self.head.new, "lr": lr}, {"params": [self.up_2LDr], "lr": lr * self.options.share}]
