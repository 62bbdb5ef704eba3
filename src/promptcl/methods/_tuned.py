"""Base of the methods that train the ViT itself, or its last blocks, with a head on it. Not a method itself.

The copy of the ViT is a member like any other: what is trained of it is saved, and the rest is that of the backbone.
It computes in `backbone.precision`; the weights, their gradients and the optimiser are float32. B images, D width, K
classes so far.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Section, Unread
from promptcl.errors import UserError
from promptcl.layers import GrowingLinear
from promptcl.methods._base import Batch, Method, TaskView


class ViTOptions(Section):
    """Settings of a ViT that is trained."""

    blocks: int | None = Field(default=None, ge=1)
    """Blocks of the ViT that are trained, the last ones, and the norm after them; null: all of it, embeddings too."""
    share: float = Field(default=0.01, ge=0)
    """Learning rate of the ViT, as a share of that of the head: 1 as in L2P's release, 0.01 as in SLCA; 0: frozen."""

    def unread(self) -> dict[str, Unread]:
        """Which blocks are trained, where none is."""
        found = super().unread()
        if not self.share:
            found["blocks"] = Unread("share=0", "share=0.01")
        return found


class TunedOptions(ViTOptions):
    """Settings of a ViT that is trained with one head."""

    head_init: Literal["zero", "uniform", "normal"] = "zero"
    """Initial values of the rows of new classes: zeros, torch.nn.Linear's uniform ones, or N(0, 0.02^2) (SLCA)."""


def trainable(backbone: Backbone, options: ViTOptions) -> Backbone:
    """A copy of the ViT of which the blocks that `options` name are parameters; the others are not saved.

    Raises UserError where there are fewer blocks.
    """
    blocks = options.blocks if options.share else 0
    if blocks is not None and blocks > backbone.depth:
        raise UserError(f"method.blocks={blocks} of a ViT of {backbone.depth}: expected at most so many; write null")
    twin = backbone.copy()
    if blocks is None:
        return twin
    vit = twin.vit
    ends = [part for part in (vit.norm, vit.fc_norm, vit.attn_pool) if blocks and part is not None]
    kept = {id(p) for part in [*vit.blocks[backbone.depth - blocks :], *ends] for p in part.parameters()}
    for module in list(vit.modules()):
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) not in kept:  # no parameter: weight decay would move it, and it would be saved
                delattr(module, name)
                module.register_buffer(name, p.detach(), persistent=False)
    return twin


@torch.no_grad()
def start_again(vit: Backbone, backbone: Backbone) -> None:
    """Give a copy the weights of the backbone again."""
    first = dict(backbone.named_parameters())
    for name, p in vit.named_parameters():
        p.copy_(first[name])


def slow_group(vit: Backbone, lr: float, share: float) -> list[dict[str, Any]]:
    """The trained part of a ViT at its share of a learning rate; no group where it is frozen."""
    parameters = [p for p in vit.parameters() if p.requires_grad]
    return [{"params": parameters, "lr": lr * share}] if parameters else []


class Tuned(Method):
    """A ViT, all of it or its last blocks, and a growing linear head, trained together."""

    Options: ClassVar[type[Section]] = TunedOptions
    options: TunedOptions
    masked: ClassVar[bool] = True
    """Whether its loss knows the training mask."""

    def __init__(self, options: TunedOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start from the weights of the backbone, with no class."""
        super().__init__(options, backbone, generator)
        self.vit = trainable(backbone, options)
        self.head = GrowingLinear(backbone.width, options.head_init)
        self.known = 0
        """Classes known before the newest task."""

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training and a memory, and the training mask only where the loss knows it."""
        return ("train.", "memory.", *(() if cls.masked else ("!train.mask", "!train.mask_classes")))

    @property
    def trained(self) -> list[Tensor]:
        """All that is trained, in a fixed order."""
        return [p for group in self.parameter_groups(1.0) for p in group["params"]]

    @property
    def classes(self) -> int:
        """Classes so far."""
        return len(self.head.bias_K)

    def grow(self, task: TaskView) -> None:
        """Append rows for new classes to the head."""
        self.known = self.classes
        self.head.grow(task.new_classes, task.generator)

    def features(self, batch: Batch) -> Tensor:
        """Class token [B, D] of the trained ViT."""
        features_BD: Tensor = self.vit(batch.images_BCHW).pooled_BD
        return features_BD

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(self.features(batch))
        return logits_BK

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head at `lr`, the ViT at its share of it."""
        return [{"params": list(self.head.parameters()), "lr": lr}, *slow_group(self.vit, lr, self.options.share)]

    @torch.no_grad()
    def new_head(self, generator: torch.Generator) -> None:
        """Give all rows of the head initial values again."""
        fresh = GrowingLinear(self.head.weight_KD.shape[1], self.options.head_init)
        fresh.grow(self.classes, generator)
        for own, first in zip(self.head.parameters(), fresh.parameters(), strict=True):
            own.copy_(first)
