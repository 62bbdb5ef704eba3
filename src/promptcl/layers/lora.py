"""Changes of the linear layers of a frozen ViT: of low rank (LoRA), of biases and norms; and what enters a block.

B images, N tokens, L blocks, D width, r rank, i and o inputs and outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.mlp import GluMlp, Mlp
from torch import Tensor, nn

from promptcl.backbone import Backbone, Change, Insert, Matrix, Place
from promptcl.errors import UserError
from promptcl.layers.sums import Sum


def matrix(backbone: Backbone, layer: int, name: Matrix) -> Tensor:
    """The frozen weights [out, in] of a linear layer of block `layer`. Raises UserError for an MLP that has none."""
    weights = parts_of(backbone, layer, name)
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def parts_of(backbone: Backbone, layer: int, name: Matrix) -> list[Tensor]:
    """As `matrix`, but as the backbone holds them: queries, keys and values by themselves where it has three."""
    block = backbone.vit.blocks[layer]
    if name in ("fc1", "fc2"):
        if type(block.mlp) not in (Mlp, GluMlp):
            raise UserError(
                f"this method changes {name} of a plain MLP, those of {backbone.name} are {type(block.mlp).__name__}: "
                "choose a plain ViT such as vit_base_patch16_224"
            )
        return [getattr(block.mlp, name).weight]
    attn = block.attn
    if name == "proj":
        return [attn.proj.weight]
    return [attn.qkv.weight] if attn.qkv is not None else [attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]


def check_rank(rank: int, backbone: Backbone) -> None:
    """Raise UserError for a rank of more than the width of a token, before anything is written."""
    if rank > backbone.width:
        raise UserError(f"method.rank={rank} of a ViT of width {backbone.width}: expected at most {backbone.width}")


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

    @torch.no_grad()
    def start_from_weights(self, backbone: Backbone) -> None:
        """Make the rows of each A the top right singular vectors of the weights that it changes."""
        for name, down_Lri in self.downs.items():
            for layer in range(self.blocks):
                down_Lri[layer] = right_vectors(matrix(backbone, layer, cast(Matrix, name)), down_Lri.shape[1])


def _places(name: str) -> tuple[Place, ...]:
    return ("q", "k", "v") if name == "qkv" else (cast(Place, name),)


def right_vectors(weight_oi: Tensor, rank: int) -> Tensor:
    """The top right singular vectors [r, i] of a matrix."""
    w_oi = weight_oi.double()
    if w_oi.shape[0] >= w_oi.shape[1]:
        vectors_ii: Tensor = torch.linalg.eigh(w_oi.T @ w_oi).eigenvectors.flip(1)
        return vectors_ii[:, :rank].T.float()
    rows_ro = torch.linalg.eigh(w_oi @ w_oi.T).eigenvectors.flip(1)[:, :rank].T  # fewer outputs than inputs: cheaper
    return F.normalize(rows_ro @ w_oi).float()


_BIASED: tuple[Place, ...] = ("q", "k", "v", "proj", "fc1", "fc2")
_NORMED: tuple[Place, ...] = ("norm1", "norm2")


class NormsAndBiases(nn.Module):
    """What is added to weights and biases of the norms, and to the biases of the linear layers; at first nothing."""

    def __init__(self, backbone: Backbone) -> None:
        """Start with zeros."""
        super().__init__()
        self.eps = float(backbone.vit.blocks[0].norm1.eps)
        self.biases, self.scales = nn.ParameterDict(), nn.ParameterDict()
        for place in (*_BIASED, *_NORMED):
            wide = len(matrix(backbone, 0, "fc1")) if place == "fc1" else backbone.width
            self.biases[place] = nn.Parameter(torch.zeros(backbone.depth, wide))
        for place in _NORMED:
            self.scales[place] = nn.Parameter(torch.zeros(backbone.depth, backbone.width))
        self.last_scale_D = nn.Parameter(torch.zeros(backbone.width))
        self.last_bias_D = nn.Parameter(torch.zeros(backbone.width))

    def inserts(self) -> list[Insert]:
        """The changes of all blocks; `last` is what comes behind them."""
        layers, places = range(len(self.biases["q"])), (*_BIASED, *_NORMED)
        return [Change(layer, place, partial(self._add, place, layer)) for layer in layers for place in places]

    def _add(self, place: str, layer: int, x: Tensor, y: Tensor) -> Tensor:
        if place in self.scales:
            y = y + F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.scales[place][layer]
        changed: Tensor = y + self.biases[place][layer]
        return changed

    def last(self, pooled_BD: Tensor) -> Tensor:
        """Change the output of the final norm, whose weight this multiplies."""
        return pooled_BD * (1 + self.last_scale_D) + self.last_bias_D


class TokenMoments(nn.Module):
    """Sums of x and x x^T over all tokens x that enter one layer of each block."""

    def __init__(self, backbone: Backbone, place: Place) -> None:
        """Start with zeros; nothing of it is saved."""
        super().__init__()
        self.place: Place = place
        depth, width = backbone.depth, backbone.width
        self.square_LDD = Sum(depth, width, width, persistent=False)
        self.sum_LD, self.count = Sum(depth, width, persistent=False), Sum(depth, persistent=False)

    def reset(self) -> None:
        """Start anew."""
        for part in (self.square_LDD, self.sum_LD, self.count):
            part.value.zero_()

    def inserts(self) -> list[Insert]:
        """Changes that change nothing and add what they see."""
        layers = range(len(self.count.value))
        return [Change(layer, self.place, partial(self._see, layer)) for layer in layers]

    def _see(self, layer: int, x_BND: Tensor, y: Tensor) -> Tensor:
        x_XD = x_BND.flatten(0, 1).double()
        self.square_LDD.value[layer] += x_XD.T @ x_XD
        self.sum_LD.value[layer] += x_XD.sum(0)
        self.count.value[layer] += len(x_XD)
        return y

    @property
    def mean_LDD(self) -> Tensor:
        """Mean of x x^T."""
        return self.square_LDD.value / self.count.value.clamp_min(1)[:, None, None]

    @property
    def covariance_LDD(self) -> Tensor:
        """Covariance of x."""
        mean_LD = self.sum_LD.value / self.count.value.clamp_min(1)[:, None]
        return self.mean_LDD - mean_LD[:, :, None] * mean_LD[:, None]
