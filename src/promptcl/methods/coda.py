"""CODA-Prompt: prefixes are sums of components, weighted by attention to the query (CVPR 2023, arXiv 2211.13218).

Every task adds components, orthonormal to all before it; older ones are frozen and still take part. Nothing is chosen.
Differs from the release in: new components are orthogonal to trained ones exactly, where its Gram-Schmidt steps are
not; `ortho` is a mean over entries as in its code, not the squared norm of the paper, and 0 as in its scripts.
B images, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.layers import GrowingLinear
from promptcl.layers.components import Components
from promptcl.layers.prompts import HeadOptions, check_layers, groups
from promptcl.methods._alignable import Alignable, AlignableOptions
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy


class ComponentOptions(HeadOptions, AlignableOptions):
    """Settings of methods whose prefixes are sums of components."""

    components: int = Field(default=10, gt=0)
    """Components that a task adds in each block: 100 over the number of tasks. They stop where there are as many as the
    ViT is wide."""
    max_tasks: int | None = Field(default=None, gt=0)
    """Tasks that add components; later ones train the head alone. null: all, so that the learner grows without end
    (at ViT-B/16 by 1.5 MB a task)."""
    length: int = Field(default=4, ge=0)
    """Rows of keys, and of values, of a component."""
    layers: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    """Blocks with a prefix, from 0."""
    ortho: float = Field(default=0.0, ge=0)
    """Weight of the term that keeps components orthonormal in training [mu]; the authors suggest 0 or 1e-6."""


class Model(Alignable):
    """Components in some blocks and a growing linear head on the class token."""

    about = "components with keys and attention, head; 2 passes"
    Options: ClassVar[type[ComponentOptions]] = ComponentOptions
    options: ComponentOptions
    attention = True
    """Whether a component has a vector that says which coordinates of a query count."""

    def __init__(self, options: ComponentOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start without components; they come with the tasks."""
        super().__init__(options, backbone, generator)
        check_layers(options.layers, backbone.depth)
        self.components = Components(options.layers, options.length, backbone.width, self.attention)
        self.begin_head(GrowingLinear(backbone.width, options.head_init), backbone.width)

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training; nothing is replayed, since what earlier tasks learned is frozen."""
        return ("train.",)

    def grow(self, task: TaskView) -> None:
        """Freeze the components of the last task, draw new ones and append head rows."""
        index, o = task.index, self.options  # refuses a stream without boundaries
        adds = o.max_tasks is None or index < o.max_tasks
        self.components.grow(o.components if adds else 0, task.generator)
        self.grow_head(task)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train the new components and the head, without images of earlier tasks; then align the head, if asked to."""
        if not self.components.present["key"].shape[1]:
            task.warn(f"task {task.index + 1} adds no components any more and trains the head alone")
        yield Stage(task.new)
        yield from self.align(backbone, task)

    def features(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Class token [B, D] with the prefixes that the queries ask for."""
        numbers, query_BD = range(len(self.options.layers)), batch.query_BD
        return backbone(batch.images_BCHW, [self.components.prefix(i, query_BD) for i in numbers]).pooled_BD  # type: ignore[no-any-return]

    def seen(self, backbone: Backbone, batch: Batch) -> Tensor:
        """As `features`."""
        return self.features(backbone, batch)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and mu times how far the components are from orthonormal."""
        loss = masked_cross_entropy(self.logits(backbone, batch), batch)
        return loss + self.options.ortho * self.components.obliqueness() if self.options.ortho else loss

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head at `lr`, the components at `prompt_lr`."""
        return groups(self, self.head, lr, self.options.prompt_lr)
