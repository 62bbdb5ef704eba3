"""The plainest batch and task that a method takes, to look at what it does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.methods._base import Method, TaskView
from promptcl.runtime.seeding import task_generator
from promptcl.training import PastTask

M = TypeVar("M", bound=Method)


@dataclass
class PlainBatch:
    """A batch whose tensors are there (see `promptcl.Batch`)."""

    images_BCHW: Tensor
    query_BD: Tensor
    labels_B: Tensor
    allowed_BK: Tensor | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)

    epoch: int = 0
    old_share: float = 0.0

    @property
    def old_B(self) -> Tensor:
        return torch.zeros(len(self.labels_B), dtype=torch.bool)

    @property
    def place_B(self) -> Tensor:
        return torch.arange(len(self.labels_B))

    def another_view(self) -> Tensor:
        return self.images_BCHW.flip(3)

    def once(self, name: str, compute: Callable[[], Tensor], *of: Tensor) -> Tensor:
        return compute()

    def rows(self, rows: Sequence[int]) -> PlainBatch:
        """Some of the images."""
        allowed_BK = None if self.allowed_BK is None else self.allowed_BK[rows]
        return PlainBatch(self.images_BCHW[rows], self.query_BD[rows], self.labels_B[rows], allowed_BK)

    def allowing(self, *classes: int, of: int) -> PlainBatch:
        """The same images with a training mask of `of` classes."""
        allowed_K = torch.zeros(of, dtype=torch.bool)
        allowed_K[list(classes)] = True
        return replace(self, allowed_BK=allowed_K.expand(len(self.labels_B), -1))


def plain_batch(backbone: Backbone, count: int = 4, classes: int = 3) -> PlainBatch:
    """Random images of 32 pixels."""
    images_BCHW = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return PlainBatch(images_BCHW, backbone.query(images_BCHW), torch.arange(count) % classes)


class PlainTask(PastTask):
    """A task with no images, for what a method does before its first stage."""

    new = memory = None

    def __init__(self, number: int, new_classes: int = 0) -> None:
        super().__init__(0, number, new_classes, 0)
        self.warnings: list[str] = []

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)


def make_method(model: type[M], backbone: Any, classes: int = 6, **options: Any) -> M:
    """A method that has grown by one task; of `backbone` only the sizes are read."""
    made = model(model.Options.model_validate(options), backbone, task_generator(0, 0, "test"))
    made.grow(cast(TaskView, PlainTask(0, classes)))
    return made


def begin_task(method: Method, number: int, new_classes: int = 0, grow: bool = True) -> list[str]:
    """Let `method` grow and come to the first stage of task `number`; what it warned of."""
    task = PlainTask(number, new_classes)
    if grow:
        method.grow(cast(TaskView, task))
    with torch.no_grad():
        next(method.learn(cast(Backbone, None), cast(TaskView, task)))
    return task.warnings


def shake(method: Method, seed: int = 2) -> None:
    """Leave zeros and small values, so that differences can be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in method.parameters():
            p.normal_(generator=generator)
