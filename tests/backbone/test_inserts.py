"""Inserts compute what they should: attention written out, merged weights and hooks give the same numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from promptcl.backbone import Backbone, Change, Insert, Place, Prefix, Tokens
from promptcl.backbone.block import walk
from promptcl.config.schema import BackboneConfig

SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3}
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "test_vit": ("test_vit", 32, {}),
    "vit": ("vit_tiny_patch16_224", 64, SMALL),
    "layer scale": ("deit3_small_patch16_224", 64, SMALL),
    "layer scale and registers": ("vit_small_patch14_reg4_dinov2", 56, SMALL),
    "pre-norm": ("vit_base_patch32_clip_224", 96, SMALL),
    "query and key norms": ("vit_tiny_patch16_224", 64, {**SMALL, "qk_norm": True}),
    "no bias": ("vit_tiny_patch16_224", 64, {**SMALL, "qkv_bias": False}),
    "gated MLP": ("vit_tiny_patch16_224", 64, {**SMALL, "mlp_layer": SwiGLUPacked}),
    "drop rates": ("vit_tiny_patch16_224", 64, {**SMALL, "drop_path_rate": 0.5, "attn_drop_rate": 0.5}),
}
if "attn_layer" in inspect.signature(VisionTransformer).parameters:  # a newer timm
    FAMILIES["output norms"] = ("vit_tiny_patch16_224", 64, {**SMALL, "scale_attn_norm": True, "scale_mlp_norm": True})
each_family = pytest.mark.parametrize("family", FAMILIES)


def make(family: str = "test_vit", dtype: torch.dtype = torch.float32, **config: Any) -> Backbone:
    """A small random model; noise on every parameter, or layer scales of 1e-5 would hide mistakes."""
    name, size, kwargs = FAMILIES[family]
    backbone = Backbone.create(BackboneConfig(name=name, weights="random", image_size=size, kwargs=kwargs, **config))
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.vit.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone.to(dtype)


def draw(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def images(backbone: Backbone, count: int = 3) -> Tensor:
    return draw(count, 3, backbone.image_size, backbone.image_size, dtype=backbone.vit.cls_token.dtype)


def prefix(backbone: Backbone, layer: int, length: int, count: int = 3) -> Prefix:
    dtype = backbone.vit.cls_token.dtype
    keys, values = (draw(count, length, backbone.width, seed=20 + i + 2 * layer, dtype=dtype) for i in (0, 1))
    return Prefix(layer, keys, values)


def entering(backbone: Backbone, x: Tensor, layer: int) -> Tensor:
    vit = backbone.vit
    tokens: Tensor = vit.blocks[:layer](vit.norm_pre(vit._pos_embed(vit.patch_embed(x))))
    return tokens


def attention_by_hand(attn: Any, h: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Head by head, with `keys` and `values` [B, L, D] in front."""
    width = h.shape[-1]
    side = width // attn.num_heads
    bias = torch.zeros_like(attn.qkv.weight[:, 0]) if attn.qkv.bias is None else attn.qkv.bias
    q, k, v = (h @ attn.qkv.weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width] for i in range(3))
    heads = []
    for part in (slice(i * side, (i + 1) * side) for i in range(attn.num_heads)):
        all_keys = torch.cat([keys[..., part], attn.k_norm(k[..., part])], 1)
        scores = attn.q_norm(q[..., part]) @ all_keys.transpose(1, 2) / math.sqrt(side)
        heads.append(scores.softmax(-1) @ torch.cat([values[..., part], v[..., part]], 1))
    merged = torch.cat(heads, -1)
    out: Tensor = attn.proj(attn.norm(merged) if hasattr(attn, "norm") else merged)
    return out


def model_by_hand(backbone: Backbone, x: Tensor, prefixes: list[Prefix]) -> Tensor:
    tokens = entering(backbone, x, 0)
    for layer, block in enumerate(backbone.vit.blocks):
        here = [p for p in prefixes if p.layer == layer]
        keys = torch.cat([tokens[:, :0], *(p.keys_BLD for p in here)], 1)
        values = torch.cat([tokens[:, :0], *(p.values_BLD for p in here)], 1)
        tokens = tokens + block.ls1(attention_by_hand(block.attn, block.norm1(tokens), keys, values))
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    out: Tensor = backbone.vit.norm(tokens)
    return out


@each_family
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_walk_without_inserts_is_timm_bit_for_bit(family: str, precision: str) -> None:
    backbone = make(family)
    x = entering(backbone, images(backbone), 1)
    for block in backbone.vit.blocks:
        for fused in (True, False):
            block.attn.fused_attn = fused
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                assert torch.equal(walk(block, x), block(x))


@each_family
def test_no_inserts_an_empty_function_and_empty_prefixes_are_timm_bit_for_bit(family: str) -> None:
    backbone = make(family)
    x = images(backbone)
    plain = backbone(x).pooled_BD
    timm_tokens = backbone.vit.forward_features(x)
    empty = [prefix(backbone, layer, 0) for layer in range(backbone.depth)]
    for inserts in ((), lambda layer, tokens: (), empty, lambda layer, tokens: empty[layer : layer + 1]):
        assert torch.equal(backbone.tokens(x, inserts), timm_tokens)
        assert torch.equal(backbone(x, inserts).pooled_BD, plain)


@each_family
def test_prefixes_are_attention_written_out_by_hand(family: str) -> None:
    backbone = make(family, torch.float64)
    x, last = images(backbone), backbone.depth - 1
    prefixes = [prefix(backbone, 0, 2), prefix(backbone, last, 3), prefix(backbone, 1, 4), prefix(backbone, last, 1)]
    for some in ([prefixes[0]], [prefixes[1]], prefixes):
        expected = model_by_hand(backbone, x, some)
        features = backbone(x, some)
        assert (features.pooled_BD - expected[:, 0]).abs().max() < 1e-6
        assert (backbone.tokens(x, some) - expected).abs().max() < 1e-6
        assert features.prompts_BPD.shape == (3, 0, backbone.width)
        assert (expected[:, 0] - backbone.query(x)).abs().max() > 1e-2


def test_a_prefix_of_zeros_is_not_none() -> None:
    backbone = make()
    x, zeros = images(backbone), torch.zeros(1, 2, backbone.width)
    for layer in (0, backbone.depth - 1):
        assert (backbone(x, [Prefix(layer, zeros, zeros)]).pooled_BD - backbone.query(x)).abs().max() > 1e-3


def test_keys_and_values_belong_together_and_have_no_order() -> None:
    backbone = make()
    x, order = images(backbone), torch.tensor([2, 0, 3, 1])
    for layer in (0, backbone.depth - 1):
        given = prefix(backbone, layer, 4)
        keys, values = given.keys_BLD, given.values_BLD
        out = backbone(x, [given]).pooled_BD
        together = backbone(x, [Prefix(layer, keys[:, order], values[:, order])]).pooled_BD
        assert torch.allclose(together, out, atol=1e-5)
        assert not torch.allclose(backbone(x, [Prefix(layer, keys[:, order], values)]).pooled_BD, out, atol=1e-3)


def test_an_image_meets_only_its_own_prefix() -> None:
    backbone = make()
    x, last = images(backbone, 5), backbone.depth - 1
    inserts = [prefix(backbone, 0, 3, 5), prefix(backbone, 2, 3, 5), prefix(backbone, last, 2, 5)]
    together = backbone(x, inserts).pooled_BD
    for i in range(5):
        own = [Prefix(p.layer, p.keys_BLD[i : i + 1], p.values_BLD[i : i + 1]) for p in inserts]
        assert torch.allclose(backbone(x[i : i + 1], own).pooled_BD[0], together[i], atol=1e-5)


def test_one_row_is_shared_by_all_images() -> None:
    backbone = make()
    x, last = images(backbone), backbone.depth - 1
    gradients = []
    for count in (1, 3):
        leaves = [draw(1, 2, backbone.width, seed=40 + i).requires_grad_() for i in range(5)]
        t, *kv = [leaf.expand(count, -1, -1) for leaf in leaves]
        features = backbone(x, [Tokens(1, t), Prefix(0, kv[0], kv[1]), Prefix(last, kv[2], kv[3])])
        (features.pooled_BD.square().sum() + features.prompts_BPD.square().sum()).backward()
        gradients.append([features.pooled_BD, *(leaf.grad for leaf in leaves)])
    for one, three in zip(*gradients, strict=True):
        assert one is not None
        assert three is not None
        assert torch.allclose(one, three, atol=1e-4)


@each_family
def test_in_one_block_a_token_is_a_prefix_to_the_others(family: str) -> None:
    backbone = make(family, torch.float64)
    tokens, extra = entering(backbone, images(backbone), 1), draw(3, 1, backbone.width, dtype=torch.float64)
    for block in backbone.vit.blocks:
        attn = block.attn
        _, keys, values = attn.qkv(block.norm1(extra)).chunk(3, -1)
        keys = attn.k_norm(keys.unflatten(-1, (attn.num_heads, -1))).flatten(-2)
        with_token = block(torch.cat([extra, tokens], 1))[:, 1:]
        for rows in (None, 1):
            with_prefix = walk(block, tokens, [Prefix(0, keys, values)], rows)
            assert (with_prefix - with_token[:, :rows]).abs().max() < 1e-6


def module_at(block: Any, place: Place) -> Any:
    owners = {"q": block.attn, "k": block.attn, "v": block.attn, "proj": block.attn, "fc1": block.mlp, "fc2": block.mlp}
    return getattr(owners.get(place, block), {"q": "qkv", "k": "qkv", "v": "qkv"}.get(place, place))


LINEAR: tuple[Place, ...] = ("q", "k", "v", "proj", "fc1", "fc2")


@pytest.mark.parametrize("place", LINEAR)
@each_family
def test_a_low_rank_change_is_the_merged_weight(family: str, place: Place) -> None:
    backbone = make(family, torch.float64)
    x = images(backbone)
    for layer in (0, 1, backbone.depth - 1):
        merged = backbone.copy().requires_grad_(False)
        weight = module_at(merged.vit.blocks[layer], place).weight
        part = {"q": 0, "k": 1, "v": 2}.get(place)
        weight = weight if part is None else weight[part * backbone.width : (part + 1) * backbone.width]
        up, down = (0.3 * draw(*s, dtype=x.dtype) for s in ((weight.shape[0], 2), (2, weight.shape[1])))
        weight += up @ down
        change = Change(layer, place, lambda x, y, up=up, down=down: y + x @ down.T @ up.T)  # type: ignore[misc]
        same(backbone, merged, x, [change])


@pytest.mark.parametrize("place", ["norm1", "norm2", "fc1", "fc2", "proj", "attn", "mlp"])
@each_family
def test_a_scale_and_shift_is_the_merged_weight(family: str, place: Place) -> None:
    backbone = make(family, torch.float64)
    x = images(backbone)
    for layer in (0, backbone.depth - 1):
        merged = backbone.copy().requires_grad_(False)
        block = merged.vit.blocks[layer]
        inner: dict[str, Place] = {"attn": "proj", "mlp": "fc2"}
        module = module_at(block, inner.get(place, place))
        width = module.weight.shape[0]
        scale, shift = 1 + 0.3 * draw(width, dtype=x.dtype), draw(width, seed=3, dtype=x.dtype)
        gamma = getattr({"attn": block.ls1, "mlp": block.ls2}.get(place), "gamma", torch.ones_like(shift))
        module.weight.mul_(scale if module.weight.ndim == 1 else scale[:, None])
        module.bias.mul_(scale).add_(shift / gamma)
        change = Change(layer, place, lambda _, y, scale=scale, shift=shift: y * scale + shift)  # type: ignore[misc]
        same(backbone, merged, x, [change])


def same(changed: Backbone, merged: Backbone, x: Tensor, inserts: list[Insert]) -> None:
    """Changes do what the merged weights do, alone and beside tokens, in all rows and in those that are read."""
    tokens = Tokens(0, draw(3, 2, changed.width, seed=5, dtype=x.dtype))
    for more in ([], [tokens]):
        left, right = changed(x, [*inserts, *more]), merged(x, more)
        assert (left.pooled_BD - right.pooled_BD).abs().max() < 1e-6
        assert torch.cat([left.prompts_BPD, right.prompts_BPD]).shape[1] == 2 * len(more)
        assert torch.allclose(left.prompts_BPD, right.prompts_BPD, atol=1e-6)
        assert (changed.tokens(x, [*inserts, *more]) - merged.tokens(x, more)).abs().max() < 1e-6
    assert (changed.query(x) - merged.query(x)).abs().max() > 1e-3


@each_family
def test_a_probe_sees_what_a_hook_sees(family: str) -> None:
    backbone = make(family)
    x = images(backbone)
    for layer in (0, backbone.depth - 1):
        block = backbone.vit.blocks[layer]
        hooked: dict[str, tuple[Tensor, Tensor]] = {}

        def hook(place: str, hooked: dict[str, tuple[Tensor, Tensor]] = hooked) -> Any:
            return lambda _module, args, out: hooked.update({place: (args[0], out)})

        modules = {place: module_at(block, place) for place in ("norm1", "q", "proj", "norm2", "fc1", "fc2")}
        modules |= {"ls1": block.ls1, "ls2": block.ls2}
        handles = [module.register_forward_hook(hook(place)) for place, module in modules.items()]
        plain = backbone.tokens(x)
        for handle in handles:
            handle.remove()
        normed, qkv = hooked["q"]
        expected = hooked | {place: (normed, part) for place, part in zip("qkv", qkv.chunk(3, -1), strict=True)}
        expected["attn"] = (hooked["norm1"][0], hooked["ls1"][1])
        expected["mlp"] = (hooked["norm2"][0], hooked["ls2"][1])
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def probe(place: Place, layer: int = layer, seen: dict[str, tuple[Tensor, Tensor]] = seen) -> Change:
            return Change(layer, place, lambda x, y: seen.update({place: (x, y)}) or y)

        probes = [probe(place) for place in get_args(Place)]
        assert torch.equal(backbone.tokens(x, probes), plain)
        for place in get_args(Place):
            for ours, theirs in zip(seen[place], expected[place], strict=True):
                assert torch.equal(ours, theirs), place
        # the forward pass reads one row: there the last block computes no others
        assert torch.allclose(backbone(x, probes).pooled_BD, backbone.query(x), atol=1e-5)
        rows = {place: {t.shape[1] for t in seen[place]} for place in get_args(Place)}
        every, few = plain.shape[1], plain.shape[1] if layer == 0 else 1
        assert rows == {place: {every if place in ("norm1", "k", "v") else few} for place in get_args(Place)}


def test_several_changes_at_a_place_apply_in_order() -> None:
    backbone = make(dtype=torch.float64)
    x, shift = images(backbone), draw(192, dtype=torch.float64)
    for place in get_args(Place):
        s = shift[: 192 if place == "fc1" else 64]

        def change(function: Callable[[Tensor], Tensor], place: Place = place) -> Change:
            return Change(1, place, lambda _, y: function(y))

        two = backbone.tokens(x, [change(lambda y: 2 * y), change(lambda y, s=s: y + s)])  # type: ignore[misc]
        one = backbone.tokens(x, [change(lambda y, s=s: 2 * y + s)])  # type: ignore[misc]
        other = backbone.tokens(x, [change(lambda y, s=s: 2 * (y + s))])  # type: ignore[misc]
        assert torch.allclose(two, one, atol=1e-6)
        if place != "k":  # a shift of all keys moves no softmax
            assert not torch.allclose(two, other, atol=1e-3)
