"""L2P++: a pool of prefixes chosen by key-query matching, as CODA-Prompt compares itself with (arXiv 2211.13218).

L2P with prefixes instead of tokens and a head on the class token; `layers` of several blocks is its "deep" form, a pool
and keys of its own in each. Differs from that code in: a query pulls the keys that it chose, not those that every other
image of the batch chose too, and as a mean over images.
B images, N selected, M pool size, L rows of a prompt, D width, R prefixed layers, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from promptcl.backbone import Backbone, Prefix
from promptcl.layers import GrowingLinear, PromptPool
from promptcl.layers.prompts import PromptOptions, check_layers, groups, initialise, top_n
from promptcl.methods._alignable import Alignable, AlignableOptions
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy


class L2PPrefixOptions(PromptOptions, AlignableOptions):
    """Settings of L2P++."""

    pool_size: int = Field(default=30, gt=0)
    """Prompts in the pool of a block."""
    top_k: int = Field(default=5, gt=0)
    """Prompts selected for an image in each block."""
    length: int = Field(default=10, gt=0)
    """Rows of keys, and of values, of a prompt (code: 20, both together)."""
    layers: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Blocks with a pool, from 0; Deep L2P++ has 0 to 4."""
    pull: float = Field(default=1.0, ge=0)
    """Weight of the cosines between a query and the keys that it selects."""
    init_scale: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _pool_holds_selection(self) -> L2PPrefixOptions:
        if self.top_k > self.pool_size:
            raise ValueError(f"top_k={self.top_k} is more than pool_size={self.pool_size}")
        return self


class Model(Alignable):
    """A pool of prefixes with keys in some blocks, and a growing linear head on the class token."""

    about = "a pool of prefixes with keys, head; 2 passes"
    Options = L2PPrefixOptions
    options: L2PPrefixOptions

    def __init__(self, options: L2PPrefixOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw prompts [M, 2 L, D] (rows of keys, then of values) and keys [M, D] of each block, in the same way."""
        super().__init__(options, backbone, generator)
        check_layers(options.layers, backbone.depth)
        o, self.pools = options, nn.ModuleList()
        for _ in o.layers:
            shapes = (o.pool_size, 2 * o.length, backbone.width), (o.pool_size, backbone.width)
            self.pools.append(PromptPool(*(initialise(s, o.prompt_init, o.init_scale, generator) for s in shapes)))
        self.begin_head(GrowingLinear(backbone.width, o.head_init), backbone.width)

    def grow(self, task: TaskView) -> None:
        """Append head rows; the pools never grow."""
        self.grow_head(task)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train prompts, keys and head; then align the head, if that is asked for."""
        yield Stage(task.new, replay=task.memory)
        yield from self.align(backbone, task)

    def select(self, query_BD: Tensor) -> tuple[list[Tensor], Tensor]:
        """Ids [B, N] of the prompts of each block, and the sum of their cosines with each query [B]."""
        chosen, total_B, o = [], query_BD.new_zeros(query_BD.shape[0]), self.options
        for number, pool in enumerate(self.pools):
            similarity_BM: Tensor = pool.match(query_BD)  # type: ignore[operator]
            chosen.append(top_n(similarity_BM.detach(), o.top_k))
            cosine_BN = similarity_BM.gather(1, chosen[-1])
            total_B = total_B + cosine_BN.sum(1)
            self.stats.count("prompts", chosen[-1] + number * o.pool_size, len(self.pools) * o.pool_size)
            self.stats.mean("cosine", cosine_BN)
        return chosen, total_B

    def features(self, backbone: Backbone, batch: Batch, chosen: list[Tensor]) -> Tensor:
        """Class token [B, D] with the chosen prompts."""
        inserts = []
        for layer, pool, index_BN in zip(self.options.layers, self.pools, chosen, strict=True):
            rows_BXD: Tensor = pool.take(index_BN)  # type: ignore[operator]
            rows_BN2LD = rows_BXD.view(index_BN.shape[0], self.options.top_k, 2, self.options.length, backbone.width)
            inserts.append(Prefix(layer, rows_BN2LD[:, :, 0].flatten(1, 2), rows_BN2LD[:, :, 1].flatten(1, 2)))
        return backbone(batch.images_BCHW, inserts).pooled_BD  # type: ignore[no-any-return]

    def seen(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Class token [B, D] with the prompts that the queries choose."""
        return self.features(backbone, batch, self.select(batch.query_BD)[0])

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, minus the pull: the cosines to the selected keys, summed, averaged over images."""
        chosen, total_B = self.select(batch.query_BD)
        loss = masked_cross_entropy(self.head(self.features(backbone, batch, chosen)), batch)
        return loss - self.options.pull * total_B.mean()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head at `lr`, prompts and keys at `prompt_lr`."""
        return groups(self, self.head, lr, self.options.prompt_lr)
