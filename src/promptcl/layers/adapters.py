"""What is trained inside the blocks of a frozen ViT: adapters, scales and shifts, deep prompts, changes of low rank.

B images, N tokens, D width, r inner width of an adapter or rank, L prompts a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptcl.backbone import Backbone, Change, Insert, Place, Prefix

Adaptation = Literal["none", "adapter", "ssf", "prompts", "lora"]
"""What may be trained: nothing, an adapter beside each MLP (AdaptFormer, Chen et al. 2022), a scale and a shift of
every activation (SSF, Lian et al. 2022), prompts in the attention of each block (Jia et al. 2022, here prefixes), or
changes of low rank of its queries, keys and values (LoRA, Hu et al. 2021)."""
_PLACES: tuple[Place, ...] = ("norm1", "q", "k", "v", "proj", "norm2", "fc1", "mlp")


class Adapters(nn.Module):
    """y + s (ReLU(x A + a) B + b) beside the MLP y of each block, x the tokens before its norm; at first just y."""

    def __init__(self, backbone: Backbone, inner: int, generator: torch.Generator, scale: float = 0.1) -> None:
        """Draw A as nn.Linear does (Kaiming uniform); the rest is zero."""
        super().__init__()
        blocks, width, bound = backbone.depth, backbone.width, backbone.width**-0.5
        down_LDr = torch.empty(blocks, width, inner).uniform_(-bound, bound, generator=generator)
        self.down_LDr, self.down_Lr = nn.Parameter(down_LDr), nn.Parameter(torch.zeros(blocks, inner))
        self.up_LrD, self.up_LD = (
            nn.Parameter(torch.zeros(blocks, inner, width)),
            nn.Parameter(torch.zeros(blocks, width)),
        )
        self.scale = scale

    def inserts(self) -> list[Insert]:
        """The adapters of all blocks."""
        return [Change(layer, "mlp", partial(self._add, layer)) for layer in range(len(self.down_LDr))]

    def _add(self, layer: int, x_BND: Tensor, y_BND: Tensor) -> Tensor:
        inner_BNr = F.relu(x_BND @ self.down_LDr[layer] + self.down_Lr[layer])
        return y_BND + self.scale * (inner_BNr @ self.up_LrD[layer] + self.up_LD[layer])


class ScaleShift(nn.Module):
    """gamma y + beta behind the norms and linear layers of each block.

    As SSF, but for the patch embedding and the final norm, which nothing can be inserted behind.
    """

    def __init__(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw gamma from N(1, 0.02^2) and beta from N(0, 0.02^2)."""
        super().__init__()
        self.scales, self.shifts = nn.ParameterDict(), nn.ParameterDict()
        for place in _PLACES:
            width = backbone.hidden if place == "fc1" else backbone.width
            shape = (backbone.depth, width)
            self.scales[place] = nn.Parameter(1 + 0.02 * torch.randn(shape, generator=generator))
            self.shifts[place] = nn.Parameter(0.02 * torch.randn(shape, generator=generator))

    def inserts(self) -> list[Insert]:
        """The changes of all blocks."""
        layers = range(len(self.scales[_PLACES[0]]))
        return [Change(layer, place, partial(self._apply_to, place, layer)) for layer in layers for place in _PLACES]

    def _apply_to(self, place: Place, layer: int, x: Tensor, y: Tensor) -> Tensor:
        changed: Tensor = y * self.scales[place][layer] + self.shifts[place][layer]
        return changed


class DeepPrompts(nn.Module):
    """L keys and values in the attention of each block, which see no other tokens than their own block's."""

    def __init__(self, backbone: Backbone, length: int, generator: torch.Generator) -> None:
        """Draw from N(0, 0.02^2): prompts that start equal stay equal for ever."""
        super().__init__()
        shape = (backbone.depth, length, backbone.width)
        self.keys = nn.Parameter(0.02 * torch.randn(shape, generator=generator))
        self.values = nn.Parameter(0.02 * torch.randn(shape, generator=generator))

    def inserts(self) -> list[Insert]:
        """The prefixes of all blocks."""
        return [Prefix(layer, self.keys[layer][None], self.values[layer][None]) for layer in range(len(self.keys))]


Matrix = Literal["qkv", "k", "v", "fc1", "fc2"]
"""A linear layer of a block; `k` and `v` are parts of `qkv`."""


def matrix(backbone: Backbone, layer: int, name: Matrix) -> Tensor:
    """Its frozen weights [out, in] in block `layer`."""
    block = backbone.vit.blocks[layer]
    if name in ("fc1", "fc2"):
        return getattr(block.mlp, name).weight  # type: ignore[no-any-return]
    weight: Tensor = block.attn.qkv.weight
    return weight if name == "qkv" else weight.chunk(3)[1 if name == "k" else 2]


class LoRA(nn.Module):
    """y + s B A x behind linear layers of each block: a change of rank r of their weights; at first just y."""

    def __init__(
        self, backbone: Backbone, rank: int, names: Sequence[Matrix], generator: torch.Generator, scale: float = 1.0
    ) -> None:
        """Draw A [r, in] of each matrix as nn.Linear does (Kaiming uniform); B [out, r] is zero."""
        super().__init__()
        self.scale, self.blocks = scale, backbone.depth
        self.downs, self.ups = nn.ParameterDict(), nn.ParameterDict()
        for name in names:
            size_out, size_in = matrix(backbone, 0, name).shape
            down_Lri = torch.empty(backbone.depth, rank, size_in)
            self.downs[name] = nn.Parameter(down_Lri.uniform_(-(size_in**-0.5), size_in**-0.5, generator=generator))
            self.ups[name] = nn.Parameter(torch.zeros(backbone.depth, size_out, rank))

    def inserts(self) -> list[Insert]:
        """The changes of all blocks."""
        parts = [(name, place, part) for name in self.downs for part, place in enumerate(_places(name))]
        return [
            Change(layer, place, partial(self._add, name, layer, part))
            for layer in range(self.blocks)
            for name, place, part in parts
        ]

    def _add(self, name: str, layer: int, part: int, x: Tensor, y: Tensor) -> Tensor:
        up_or = self.ups[name][layer].chunk(len(_places(name)))[part]
        changed: Tensor = y + self.scale * (x @ self.downs[name][layer].T @ up_or.T)
        return changed


def _places(name: str) -> tuple[Place, ...]:
    return ("q", "k", "v") if name == "qkv" else (cast(Place, name),)


def make(
    kind: Adaptation, backbone: Backbone, size: int, generator: torch.Generator
) -> Adapters | ScaleShift | DeepPrompts | LoRA:
    """Make an adaptation of a kind other than `none`; size: inner width of an adapter, rank, or prompts a block."""
    if kind == "adapter":
        return Adapters(backbone, size, generator)
    if kind == "lora":
        return LoRA(backbone, size, ("qkv",), generator)
    return ScaleShift(backbone, generator) if kind == "ssf" else DeepPrompts(backbone, size, generator)
