"""Nearest mean of the rows kept of each class: a method that can take images away again (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.methods._base import Batch, Method, Stage, TaskView
from promptcl.runtime import processes


class Model(Method):
    """Keeps the frozen feature of every image, in the order learned."""

    rows_ND: Tensor
    label_N: Tensor
    mean_KD: Tensor

    def __init__(self, options: Any, backbone: Backbone, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.register_buffer("rows_ND", torch.zeros(0, backbone.width, dtype=torch.float64))
        self.register_buffer("label_N", torch.zeros(0, dtype=torch.long))
        self.register_buffer("mean_KD", torch.zeros(0, backbone.width, dtype=torch.float64))

    def grow(self, task: TaskView) -> None:
        self.mean_KD = torch.cat([self.mean_KD, self.mean_KD.new_zeros(task.new_classes, self.mean_KD.shape[1])])

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        self.absorb(backbone, task, task.new)
        yield from ()

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        found = [(batch.query_BD.double(), batch.labels_B) for batch in task.batches(images)]
        found = [pair for mine in processes.everyones(found) for pair in mine]  # in order: shares are runs of images
        self.rows_ND = torch.cat([self.rows_ND, *(rows_BD for rows_BD, _ in found)])
        self.label_N = torch.cat([self.label_N, *(labels_B for _, labels_B in found)])
        self._solve(len(self.mean_KD))

    def _solve(self, classes: int) -> None:
        means = [self.rows_ND[self.label_N == k] for k in range(classes)]
        self.mean_KD = torch.stack([rows_RD.sum(0) / max(1, len(rows_RD)) for rows_RD in means])

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        return -torch.cdist(batch.query_BD.double(), self.mean_KD).float()

    @property
    def mendable(self) -> bool:
        return True

    def mend(self, labels_N: Tensor, classes: int) -> None:
        assert len(labels_N) == len(self.rows_ND)
        self.rows_ND, self.label_N = self.rows_ND[labels_N >= 0], labels_N[labels_N >= 0]
        self._solve(classes)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Make room for as many rows as were saved."""
        for name in ("rows_ND", "label_N"):
            setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"]))
        super()._load_from_state_dict(state_dict, prefix, *rest)
