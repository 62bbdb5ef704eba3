"""What a method may put into a block of the ViT: extra tokens, extra keys and values, changed activations or weights.

B images, N tokens, L inserted rows, D width, i and o inputs and outputs of a layer. Where a shape begins with B it may
begin with 1: all images share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from promptcl.errors import UserError

Place = Literal["norm1", "q", "k", "v", "proj", "attn", "norm2", "fc1", "fc2", "mlp"]
"""A place in a block. `attn` and `mlp` are its two branches, each from the residual stream before the norm to what is
added to the stream, after layer scale. The others are the modules of that name; `q`, `k` and `v` are the three parts of
timm's `qkv`, each [B, N, D] before it is split into heads (and before `q_norm` and `k_norm`)."""

Matrix = Literal["qkv", "proj", "fc1", "fc2"]
"""A linear layer of a block. `qkv` is one matrix [3 D, D], also in a model that has three projections."""


@dataclass(frozen=True)
class Tokens:
    """Extra tokens [B, L, D] in front of the sequence, from block `layer` on (L2P, VPT, S-Prompts)."""

    layer: int
    tokens_BLD: Tensor

    def __post_init__(self) -> None:
        """Raise UserError for a shape other than [B, L, D]."""
        _check_dimensions(self, self.tokens_BLD, "tokens")


@dataclass(frozen=True)
class Prefix:
    """Extra keys and values [B, L, D] in the attention of block `layer` (DualPrompt, CODA-Prompt, OnePrompt).

    They stand in front of the keys and values of the tokens, after projection, bias and `k_norm`: they are the
    parameters as they are, and the sequence gets no longer. Every head reads its own part of D.
    """

    layer: int
    keys_BLD: Tensor
    values_BLD: Tensor

    def __post_init__(self) -> None:
        """Raise UserError for a shape other than [B, L, D], or keys and values of different length."""
        _check_dimensions(self, self.keys_BLD, "keys")
        _check_dimensions(self, self.values_BLD, "values")
        keys, values = self.keys_BLD.shape[1], self.values_BLD.shape[1]
        if keys != values:
            raise UserError(
                f"a Prefix at layer {self.layer} has {keys} keys and {values} values: each key needs one value"
            )


@dataclass(frozen=True)
class Change:
    """What comes out at `place` of block `layer` becomes function(x, y): x went in, y came out (LoRA, adapters, SSF).

    The function gives a tensor of y's shape, which is cast to y's dtype. Several changes at one place apply in order,
    each to the y of the one before. A function that stores x and returns y unchanged is a probe.

    A function must treat each token by itself. In the last block only the rows that are read are computed (the class
    token and those of `Tokens`): there a function at norm1, k or v sees all tokens, at any other place those rows only.
    With activation checkpointing it is called once more in the backward pass. Under bf16 it runs under autocast.
    """

    layer: int
    place: Place
    function: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        """Raise UserError for an unknown place."""
        if self.place not in get_args(Place):
            raise UserError(f"a Change has place={self.place!r}, expected one of {', '.join(get_args(Place))}")


@dataclass(frozen=True)
class Weight:
    """The linear layer `place` of block `layer` computes with these weights, in the place of its own; its bias stays.

    For updates that are merged, W + B A: a pass then costs what it costs without them. The backbone itself is not
    changed. Of several at one place the last counts; a Change at that place applies to what comes out.
    """

    layer: int
    place: Matrix
    weight_oi: Tensor

    def __post_init__(self) -> None:
        """Raise UserError for an unknown place."""
        if self.place not in get_args(Matrix):
            raise UserError(f"a Weight has place={self.place!r}, expected one of {', '.join(get_args(Matrix))}")


Inner = Prefix | Change | Weight
"""What acts inside a block."""
Insert = Tokens | Inner
Inserts = Sequence[Insert] | Callable[[int, Tensor], Sequence[Insert]]
"""Inserts, or a function that gives those of a block from its number and the tokens [B, N, D] that enter it (before its
`norm1`, the class token behind the `Tokens` of earlier blocks). The function runs in full precision."""


def check(insert: Insert, name: str, depth: int, width: int, batch: int) -> None:
    """Raise UserError for an insert that does not fit the backbone `name` or a batch of this size."""
    if not isinstance(insert, Insert):
        raise UserError(f"an insert is a {type(insert).__name__}, expected Tokens, Prefix, Change or Weight")
    kind = type(insert).__name__
    if not 0 <= insert.layer < depth:
        raise UserError(f"{kind} at layer {insert.layer}: {name} has layers 0 to {depth - 1}, write one of these")
    if isinstance(insert, Change | Weight):  # what does not fit shows in the block
        return
    for what, tensor in vars(insert).items():
        if not isinstance(tensor, Tensor):
            continue
        where = f"{kind} at layer {insert.layer}: {what.removesuffix('_BLD')}"
        if tensor.shape[2] != width:
            raise UserError(f"{where} are {tensor.shape[2]} wide, {name} is {width} wide: make them [B, L, {width}]")
        # a batch of free size is not compared with 1, or an exported program would be bound to the answer
        if tensor.shape[0] != 1 and tensor.shape[0] != batch:
            raise UserError(
                f"{where} are for {tensor.shape[0]} images, the batch has {batch}: give {batch}, or 1 for all"
            )


def _check_dimensions(insert: Tokens | Prefix, tensor: Tensor, what: str) -> None:
    if tensor.ndim != 3:
        raise UserError(
            f"{type(insert).__name__} at layer {insert.layer}: {what} have shape {tuple(tensor.shape)}, "
            "expected [B, L, D], or [1, L, D] for all images"
        )
