"""VQ-Prompt: a soft mixture of prompts is snapped to the nearest prompt of the pool (NeurIPS 2024, arXiv 2410.20444).

So the choice is discrete and yet trained by the loss: the gradient passes straight through to the mixture, and from it
to prompts and keys. As in the code, queries keep their length, which makes the mixture sharp. Differs from it in: no
first steps at a learning rate of 1e-6; the head is aligned on request, with Gaussians of the evaluation view.
B images, R prefixed layers, M pool size, L rows of a prefix, D width, X = 2 L D, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone, Prefix
from promptcl.layers import GrowingLinear
from promptcl.layers.prompts import PromptOptions, check_layers, groups, initialise, top_n
from promptcl.methods._alignable import Alignable, AlignableOptions
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy


class VQOptions(PromptOptions, AlignableOptions):
    """Settings of VQ-Prompt."""

    pool_size: int = Field(default=10, gt=0)
    """Prompts, each with a key, in each block."""
    length: int = Field(default=4, ge=0)
    """Rows of keys, and of values, of a prompt."""
    layers: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    """Blocks with a pool, from 0."""
    temperature: float = Field(default=1.0, gt=0)
    """What products of query and keys are divided by [tau]; 5 for CUB-200."""
    commitment: float = Field(default=0.4, ge=0)
    """Weight of the term that pulls the mixture to the chosen prompt. The paper's text exchanges it with `codebook`."""
    codebook: float = Field(default=0.1, ge=0)
    """Weight of the term that pulls the chosen prompt to the mixture."""
    init_scale: float = Field(default=1.0, gt=0)


class Choice(NamedTuple):
    """What the images of a batch take in one block."""

    mixture_BX: Tensor
    prompt_BX: Tensor
    """The prompt of the pool that is nearest to the mixture."""
    index_B: Tensor


class Model(Alignable):
    """A pool of prompts with keys in some blocks, and a growing linear head on the class token."""

    about = "a pool of prompts with keys, chosen by the loss, head; 2 passes"
    Options = VQOptions
    options: VQOptions

    def __init__(self, options: VQOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw prompts and keys."""
        super().__init__(options, backbone, generator)
        check_layers(options.layers, backbone.depth)
        o, shape = options, (len(options.layers), options.pool_size)
        sizes = (2 * o.length * backbone.width, backbone.width)
        drawn = (initialise((*shape, size), o.prompt_init, o.init_scale, generator) for size in sizes)
        self.prompts_RMX, self.keys_RMD = (nn.Parameter(values) for values in drawn)
        self.begin_head(GrowingLinear(backbone.width, o.head_init), backbone.width)

    def grow(self, task: TaskView) -> None:
        """Append head rows; the pool never grows."""
        self.grow_head(task)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train prompts, keys and head; then align the head, if that is asked for."""
        yield Stage(task.new, replay=task.memory)
        yield from self.align(backbone, task)

    def choose(self, query_BD: Tensor) -> list[Choice]:
        """What each image takes in each prefixed block; of equally near prompts the lower number."""
        return [self._choose(query_BD, *pool) for pool in zip(self.prompts_RMX, self.keys_RMD, strict=True)]

    def _choose(self, query_BD: Tensor, prompts_MX: Tensor, keys_MD: Tensor) -> Choice:
        weight_BM = (query_BD @ F.normalize(keys_MD).T / self.options.temperature).softmax(1)
        # |mixture - prompt|^2 without what is the same for all prompts, around their mean, where rounding is least.
        around_MX = (prompts_MX - prompts_MX.mean(0)).detach()
        products_MM = around_MX @ around_MX.T
        index_B1 = top_n(2 * weight_BM.detach() @ products_MM - products_MM.diagonal(), 1)
        return Choice(weight_BM @ prompts_MX, F.embedding(index_B1[:, 0], prompts_MX), index_B1[:, 0])

    def features(self, backbone: Backbone, batch: Batch, choices: list[Choice]) -> Tensor:
        """Class token [B, D] with the chosen prompts, whose gradient is that of the mixtures."""
        inserts, o = [], self.options
        for number, (layer, choice) in enumerate(zip(o.layers, choices, strict=True)):
            used_BX = choice.mixture_BX + (choice.prompt_BX - choice.mixture_BX).detach()
            used_B2LD = used_BX.view(used_BX.shape[0], 2, o.length, backbone.width)
            inserts.append(Prefix(layer, used_B2LD[:, 0], used_B2LD[:, 1]))
            self.stats.count("prompts", choice.index_B + number * o.pool_size, len(o.layers) * o.pool_size)
        return backbone(batch.images_BCHW, inserts).pooled_BD  # type: ignore[no-any-return]

    def seen(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Class token [B, D] with the prompts that the queries choose."""
        return self.features(backbone, batch, self.choose(batch.query_BD))

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and the two terms between mixtures and chosen prompts: means, summed over blocks."""
        choices = self.choose(batch.query_BD)
        loss = masked_cross_entropy(self.head(self.features(backbone, batch, choices)), batch)
        for choice in choices if self.options.length else ():
            loss = loss + self.options.commitment * F.mse_loss(choice.mixture_BX, choice.prompt_BX.detach())
            loss = loss + self.options.codebook * F.mse_loss(choice.prompt_BX, choice.mixture_BX.detach())
        return loss

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head at `lr`, prompts and keys at `prompt_lr`."""
        return groups(self, self.head, lr, self.options.prompt_lr)
