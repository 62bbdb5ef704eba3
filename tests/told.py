"""A method whose task a test tells (ours), and who counts what happens in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from helpers import make_config
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.config import Section
from promptcl.layers import GrowingLinear
from promptcl.learner import Learner
from promptcl.methods._base import Batch, Method, Stage, TaskView, masked_cross_entropy
from promptcl.testing.bench import named
from promptcl.training import Silent

Story = Callable[["Told", Backbone, TaskView], Iterator[Stage]]


class Told(Method):
    """A linear head, and a story that a test tells (ours)."""

    story: Story | None = None

    def __init__(self, options: Section, backbone: Backbone, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.head = GrowingLinear(backbone.width, "uniform")
        self.other = nn.Parameter(torch.zeros(2))
        self.seen: list[Batch] = []

    def grow(self, task: TaskView) -> None:
        self.head.grow(task.new_classes, task.generator)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield from (self.story(self, backbone, task) if self.story else super().learn(backbone, task))

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        logits_BK: Tensor = self.head(batch.query_BD)
        return logits_BK

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        self.seen.append(batch)
        return masked_cross_entropy(self.logits(backbone, batch), batch)


def make(backbone: Backbone, story: Story | None = None, **changes: Any) -> tuple[Learner, Told]:
    learner = Learner(make_config(method={"name": named(Told)}, **changes), backbone)
    assert isinstance(learner.method, Told)
    learner.method.story = story
    return learner, learner.method


class Record(Silent):
    """Stages with their steps, and how often a step was told of."""

    def __init__(self) -> None:
        self.stages: list[tuple[int, int]] = []
        self.steps = 0

    def stage(self, number: int, steps: int) -> None:
        self.stages.append((number, steps))

    def step(self) -> None:
        self.steps += 1


@contextlib.contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """Images of each pass through the ViT."""
    found: list[int] = []
    hook = backbone.vit.patch_embed.register_forward_hook(lambda module, x, y: found.append(len(x[0])))
    yield found
    hook.remove()
