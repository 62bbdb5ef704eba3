"""Forward pass of one timm block with inserts, which computes only the rows that are needed.

B images, N tokens, R rows that are computed, L rows of a prefix, H heads, D width. Repeats what `Block` and `EvaBlock`
of timm, their attention and `Mlp` do in eval mode, where dropout and stochastic depth do nothing; without inserts and
with all rows it gives the bits of `block(x)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat  # type: ignore[attr-defined]
from timm.layers.mlp import GluMlp, Mlp
from torch import Tensor, nn

from promptcl.backbone.inserts import Change, Inner, Place, Prefix, Weight
from promptcl.errors import UserError

Weights = Mapping[str, Weight]
"""Weights in the place of those of linear layers, by the name of the layer."""


class Rotation(NamedTuple):
    """Rotary positions of one block: of the patches only, which come behind all other tokens."""

    angles: Tensor
    """As timm's `rope` argument: sines and cosines of each patch."""
    before: int
    """Number of tokens in front of the patches: inserted ones, class token, registers."""


def walk(
    block: Any,
    x_BND: Tensor,
    inserts: Sequence[Inner] = (),
    rows: int | None = None,
    rotation: Rotation | None = None,
) -> Tensor:
    """The first `rows` rows [B, R, D] (None: all) of `block(x)` with inserts.

    Keys and values are computed for all tokens, the rest for these rows only.
    Raises UserError for a Change or a Weight of another shape, or that does not fit the MLP of the block.
    """
    weights: Weights = {insert.place: insert for insert in inserts if isinstance(insert, Weight)}
    changes = [insert for insert in inserts if isinstance(insert, Change)]
    prefixes = [insert for insert in inserts if isinstance(insert, Prefix)]
    x_BRD = _first(x_BND, rows)
    normed_BND = _changed(changes, "norm1", x_BND, block.norm1(x_BND))
    y = _attention(block.attn, normed_BND, prefixes, changes, weights, rows, rotation)
    y = _changed(changes, "attn", x_BRD, _scaled(block, 1, y))
    x_BRD = x_BRD + y
    normed_BRD = _changed(changes, "norm2", x_BRD, block.norm2(x_BRD))
    y = _changed(changes, "mlp", x_BRD, _scaled(block, 2, _mlp(block.mlp, normed_BRD, changes, weights)))
    return x_BRD + y


def _scaled(block: Any, branch: int, y: Tensor) -> Tensor:
    """Layer scale of a branch, as `Block` or as `EvaBlock` holds it."""
    if hasattr(block, "ls1"):
        return (block.ls1 if branch == 1 else block.ls2)(y)  # type: ignore[no-any-return]
    gamma = block.gamma_1 if branch == 1 else block.gamma_2
    return y if gamma is None else gamma * y


def _first(x_BND: Tensor, rows: int | None) -> Tensor:
    return x_BND if rows is None else x_BND[:, :rows]


def _changed(changes: Sequence[Change], place: Place, x: Tensor, y: Tensor) -> Tensor:
    """Apply the changes at `place` to `y`, one after the other."""
    for change in changes:
        if change.place == place:
            new = change.function(x, y)
            if not isinstance(new, Tensor) or new.shape != y.shape:
                got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
                raise UserError(f"a Change at {place} of layer {change.layer} gave {got}, expected {list(y.shape)}")
            y = new.to(y.dtype)
    return y


def _attention(
    attn: Any,
    x_BND: Tensor,
    prefixes: Sequence[Prefix],
    changes: Sequence[Change],
    weights: Weights,
    rows: int | None,
    rotation: Rotation | None,
) -> Tensor:
    """timm's attention for the first rows, with prefixes, which are not rotated."""
    x_BRD = _first(x_BND, rows)
    q, k, v = _project(attn, x_BND, rows, weights.get("qkv"))
    q = _changed(changes, "q", x_BRD, q)
    k, v = _changed(changes, "k", x_BND, k), _changed(changes, "v", x_BND, v)
    q, k, v = (_heads(t, attn.num_heads) for t in (q, k, v))
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rotation is not None:
        half = getattr(attn, "rotate_half", False)
        q, k = (_rotated(t, rotation, half).type_as(v) for t in (q, k))
    if prefixes:
        k = torch.cat([*(_prefix(prefix.keys_BLD, k) for prefix in prefixes), k], dim=2)
        v = torch.cat([*(_prefix(prefix.values_BLD, v) for prefix in prefixes), v], dim=2)
    if attn.fused_attn or rows is not None:  # its slow bf16 backward on CPUs hardly counts for few rows
        y = F.scaled_dot_product_attention(q, k, v)
    else:
        y = (q * attn.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    y = y.transpose(1, 2).flatten(2)
    y = getattr(attn, "norm", nn.Identity())(y)  # absent before timm 1.0.16
    if getattr(attn, "gate", None) is not None:
        y = y * attn.gate(x_BRD).sigmoid()
    return _changed(changes, "proj", y, _linear(attn.proj, weights.get("proj"), y))


def _project(attn: Any, x_BND: Tensor, rows: int | None, other: Weight | None) -> tuple[Tensor, ...]:
    """Queries of the first rows, keys and values of all, from one projection or from three; other: its weights."""
    x_BRD = _first(x_BND, rows)
    if attn.qkv is None:
        parts = (attn.q_proj, attn.k_proj, attn.v_proj)
        if other is None:
            return tuple(part(x) for part, x in zip(parts, (x_BRD, x_BND, x_BND), strict=True))
        _fits(other, torch.Size((sum(part.out_features for part in parts), attn.q_proj.in_features)))
        own = zip(parts, other.weight_oi.chunk(3), (x_BRD, x_BND, x_BND), strict=True)
        return tuple(F.linear(x, weight, part.bias) for part, weight, x in own)
    weight, bias = attn.qkv.weight, attn.qkv.bias
    if other is not None:
        weight = _fits(other, weight.shape)
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    if rows is None and getattr(attn, "qkv_bias_separate", False):  # the bits of an addition of its own
        together: Tensor = F.linear(x_BND, weight, attn.qkv.bias) + bias
        return together.chunk(3, dim=-1)
    if rows is None:
        return F.linear(x_BND, weight, bias).chunk(3, dim=-1)
    width = attn.qkv.out_features // 3
    q_weight, kv_weight = weight.split([width, 2 * width])
    q_bias, kv_bias = (None, None) if bias is None else bias.split([width, 2 * width])
    return F.linear(x_BRD, q_weight, q_bias), *F.linear(x_BND, kv_weight, kv_bias).chunk(2, dim=-1)


def _linear(module: Any, other: Weight | None, x: Tensor) -> Tensor:
    """What a linear layer gives, with other weights where there are some."""
    if other is None:
        return module(x)  # type: ignore[no-any-return]
    return F.linear(x, _fits(other, module.weight.shape), module.bias)


def _fits(other: Weight, shape: torch.Size) -> Tensor:
    """The weights, if they have the shape of those in whose place they are."""
    if other.weight_oi.shape != shape:
        got, place = list(other.weight_oi.shape), f"{other.place} of layer {other.layer}"
        raise UserError(f"a Weight at {place} is {got}, expected {list(shape)}: [outputs, inputs]")
    return other.weight_oi


def _rotated(t_BHNd: Tensor, rotation: Rotation, half: bool) -> Tensor:
    """Queries or keys with the patches among them turned by their positions."""
    still, patches = t_BHNd[:, :, : rotation.before], t_BHNd[:, :, rotation.before :]
    if not patches.shape[2]:  # only rows in front of the patches are computed
        return t_BHNd
    return torch.cat([still, apply_rot_embed_cat(patches, rotation.angles, **({"half": True} if half else {}))], dim=2)


def _heads(t_BND: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, H, N, D / H]."""
    return t_BND.reshape(*t_BND.shape[:2], heads, -1).transpose(1, 2)


def _prefix(rows_BLD: Tensor, like_BHNd: Tensor) -> Tensor:
    """A prefix for every image and head, in the dtype of the keys or values that it joins."""
    # expanded before it is cast: the gradient of shared rows is then summed over the images in the dtype of the prefix
    expanded = rows_BLD.expand(like_BHNd.shape[0], -1, -1).to(like_BHNd.dtype)
    return _heads(expanded, like_BHNd.shape[1])


def _mlp(mlp: Any, x: Tensor, changes: Sequence[Change], weights: Weights) -> Tensor:
    """The MLP of a block; written out only where something changes inside it."""
    both: list[Change | Weight] = [*changes, *weights.values()]
    inside = [one for one in both if one.place in ("fc1", "fc2")]
    if not inside:
        return mlp(x)  # type: ignore[no-any-return]
    if type(mlp) not in (Mlp, GluMlp):
        raise UserError(
            f"a {type(inside[0]).__name__} at {inside[0].place} of layer {inside[0].layer} needs a plain MLP, this one "
            f"is a {type(mlp).__name__}: write place='mlp'"
        )
    y = _changed(changes, "fc1", x, _linear(mlp.fc1, weights.get("fc1"), x))
    if isinstance(mlp, GluMlp):
        first, second = y.chunk(2, dim=-1)
        y = first * mlp.act(second) if mlp.gate_last else mlp.act(first) * second
    else:
        y = mlp.act(y)
    y = mlp.norm(y)
    return _changed(changes, "fc2", y, _linear(mlp.fc2, weights.get("fc2"), y))
