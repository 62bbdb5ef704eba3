"""What is trained inside the blocks of a frozen ViT: adapters, scales and shifts, deep prompts, changes of low rank.

B images, N tokens, D width, r inner width of an adapter or rank, L prompts a block.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptcl.backbone import Backbone, Change, Insert, Place, Prefix
from promptcl.layers.lora import LoRA, matrix

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

    def anew(self, generator: torch.Generator) -> Adapters:
        """Make other adapters of the same sizes, with values as at first."""
        twin = copy.deepcopy(self).requires_grad_(True)
        with torch.no_grad():
            bound = self.down_LDr.shape[1] ** -0.5
            twin.down_LDr.copy_(torch.empty(self.down_LDr.shape).uniform_(-bound, bound, generator=generator))
            for part in (twin.down_Lr, twin.up_LrD, twin.up_LD):
                part.zero_()
        return twin

    def inserts(self, values: Mapping[str, Tensor] | None = None) -> list[Insert]:
        """The adapters of all blocks; values: other numbers in the place of its own, by name."""
        values = values or dict(self.named_parameters())
        parts = [values[name] for name in ("down_LDr", "down_Lr", "up_LrD", "up_LD")]
        layers = range(len(parts[0]))
        return [Change(layer, "mlp", partial(self._add, *(part[layer] for part in parts))) for layer in layers]

    def _add(
        self, down_Dr: Tensor, down_r: Tensor, up_rD: Tensor, up_D: Tensor, x_BND: Tensor, y_BND: Tensor
    ) -> Tensor:
        return y_BND + self.scale * (F.relu(x_BND @ down_Dr + down_r) @ up_rD + up_D)


class ScaleShift(nn.Module):
    """gamma y + beta behind the norms and linear layers of each block.

    As SSF, but for the patch embedding and the final norm, which nothing can be inserted behind.
    """

    def __init__(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw gamma from N(1, 0.02^2) and beta from N(0, 0.02^2)."""
        super().__init__()
        self.scales, self.shifts = nn.ParameterDict(), nn.ParameterDict()
        for place in _PLACES:
            width = len(matrix(backbone, 0, "fc1")) if place == "fc1" else backbone.width
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


def make(
    kind: Adaptation, backbone: Backbone, size: int, generator: torch.Generator
) -> Adapters | ScaleShift | DeepPrompts | LoRA:
    """Make an adaptation of a kind other than `none`; size: inner width of an adapter, rank, or prompts a block."""
    if kind == "adapter":
        return Adapters(backbone, size, generator)
    if kind == "lora":
        return LoRA(backbone, size, ("qkv",), generator)
    return ScaleShift(backbone, generator) if kind == "ssf" else DeepPrompts(backbone, size, generator)
