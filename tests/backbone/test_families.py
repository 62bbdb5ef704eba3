"""Rotary positions and models that pool their tokens themselves: inserts do what timm's own modules give by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.layers import apply_rot_embed_cat  # type: ignore[attr-defined]
from torch import Tensor

from promptcl.backbone import Backbone, Change, Prefix, Tokens
from promptcl.backbone.block import Rotation, walk
from promptcl.backbone.catalogue import backbones
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError

SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3}
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "EVA": ("eva_large_patch14_196", 56, SMALL),
    "EVA-02": ("eva02_tiny_patch14_224", 56, SMALL),
    "DINOv3": ("vit_small_patch16_dinov3", 64, SMALL),
    "rotary positions of each block": ("vit_small_patch16_rope_mixed_224", 64, SMALL),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", 64, SMALL),
    "SigLIP": ("vit_base_patch16_siglip_224", 64, SMALL),
    "mean of patches": ("vit_tiny_patch16_224", 64, {**SMALL, "class_token": False, "global_pool": "avg"}),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def make(family: str, dtype: torch.dtype = torch.float64) -> Backbone:
    """A small random model with noise on every parameter."""
    name, size, kwargs = FAMILIES[family]
    backbone = Backbone.create(BackboneConfig(name=name, weights="random", image_size=size, kwargs=kwargs))
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.vit.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone.to(dtype)


def draw(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def images(backbone: Backbone, dtype: torch.dtype = torch.float64) -> Tensor:
    return draw(3, 3, backbone.image_size, backbone.image_size, dtype=dtype)


def pooled(backbone: Backbone, tokens: Tensor) -> Tensor:
    """Class token of normed tokens where it passes a norm, else what timm's classifier would read."""
    if backbone.reads_class_token:
        return tokens[:, 0]
    out: Tensor = backbone.vit.forward_head(tokens, pre_logits=True)
    return out


def rope_of(angles: Tensor | None, layer: int) -> Tensor | None:
    return angles[layer] if angles is not None and angles.ndim > 2 else angles


@each_family
def test_no_inserts_are_timm_bit_for_bit(family: str) -> None:
    backbone = make(family, torch.float32)
    x = images(backbone, torch.float32)
    expected = backbone.vit.forward_features(x)
    assert torch.equal(backbone.tokens(x), expected)
    nothing = Prefix(1, torch.zeros(1, 0, backbone.width), torch.zeros(1, 0, backbone.width))
    for inserts in ((), [nothing], lambda layer, tokens: ()):
        assert torch.equal(backbone.tokens(x, inserts), expected)
        assert torch.allclose(backbone(x, inserts).pooled_BD, pooled(backbone, expected), atol=1e-5)
    assert torch.allclose(backbone.query(x), pooled(backbone, expected), atol=1e-5)
    tokens, angles = backbone._embedded(x)
    for layer, block in enumerate(backbone.vit.blocks):
        rope = rope_of(angles, layer)
        turned = None if rope is None else Rotation(rope, backbone.vit.num_prefix_tokens)
        plain = block(tokens) if rope is None else block(tokens, rope=rope)
        assert torch.equal(walk(block, tokens, rotation=turned), plain)


@each_family
def test_tokens_are_a_longer_sequence_in_which_only_patches_are_turned(family: str) -> None:
    backbone = make(family)
    x, extra = images(backbone), {0: draw(3, 2, backbone.width), 2: draw(3, 1, backbone.width, seed=3)}
    vit = copy.deepcopy(backbone.vit)
    tokens, angles = backbone._embedded(x)
    inserted = 0
    for layer, block in enumerate(vit.blocks):
        if layer in extra:
            tokens = torch.cat([extra[layer], tokens], 1)
            inserted += extra[layer].shape[1]
        rope = rope_of(angles, layer)
        block.attn.num_prefix_tokens = vit.num_prefix_tokens + inserted  # what timm does not turn
        tokens = block(tokens) if rope is None else block(tokens, rope=rope)
    normed = vit.norm(tokens)
    inserts = [Tokens(layer, rows) for layer, rows in extra.items()]
    features = backbone(x, inserts)
    assert (backbone.tokens(x, inserts) - normed).abs().max() < 1e-5
    assert (features.pooled_BD - pooled(backbone, normed[:, 3:])).abs().max() < 1e-5
    assert (features.prompts_BPD - vit.fc_norm(normed[:, :3])).abs().max() < 1e-5
    assert (features.pooled_BD - backbone.query(x)).abs().max() > 1e-3


def attention_by_hand(attn: Any, h: Tensor, rope: Tensor | None, still: int, keys: Tensor, values: Tensor) -> Tensor:
    """Queries and keys are turned, then keys and values [B, L, D] stand in front."""
    if attn.qkv is None:
        q, k, v = attn.q_proj(h), attn.k_proj(h), attn.v_proj(h)
    else:
        q, k, v = attn.qkv(h).chunk(3, -1)
        if getattr(attn, "q_bias", None) is not None:
            q, v = q + attn.q_bias, v + attn.v_bias
    q, k, v, keys, values = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v, keys, values))
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        half = {"half": True} if getattr(attn, "rotate_half", False) else {}
        q, k = (torch.cat([t[:, :, :still], apply_rot_embed_cat(t[:, :, still:], rope, **half)], 2) for t in (q, k))
    k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    out = ((q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return attn.proj(attn.norm(out.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


@each_family
@pytest.mark.parametrize("layer", [0, 2])
def test_a_prefix_is_attention_written_out_by_hand(family: str, layer: int) -> None:
    backbone = make(family)
    x, vit = images(backbone), backbone.vit
    keys, values = draw(3, 2, backbone.width, seed=5), draw(3, 2, backbone.width, seed=6)
    tokens, angles = backbone._embedded(x)
    for i, block in enumerate(vit.blocks):
        rope = rope_of(angles, i)
        given = (keys, values) if i == layer else (keys[:, :0], values[:, :0])
        y = attention_by_hand(block.attn, block.norm1(tokens), rope, vit.num_prefix_tokens, *given)
        first, second = (
            (block.ls1, block.ls2) if hasattr(block, "ls1") else (_times(block.gamma_1), _times(block.gamma_2))
        )
        tokens = tokens + first(y)
        tokens = tokens + second(block.mlp(block.norm2(tokens)))
    expected = pooled(backbone, vit.norm(tokens))
    assert (backbone(x, [Prefix(layer, keys, values)]).pooled_BD - expected).abs().max() < 1e-5
    assert (backbone.query(x) - expected).abs().max() > 1e-3


def _times(gamma: Tensor | None) -> Any:
    return lambda y: y if gamma is None else gamma * y


@each_family
def test_the_gradient_reaches_the_inserts_only(family: str) -> None:
    backbone = make(family)
    x = images(backbone)
    leaves = [draw(1, 2, backbone.width, seed=i).requires_grad_() for i in range(4)]
    inserts = [
        Tokens(0, leaves[0]),
        Prefix(2, leaves[1], leaves[2]),
        Change(1, "attn", lambda _, y: y * leaves[3][0, 0]),
    ]
    outs = []
    for again in (False, True):
        backbone.activation_checkpointing = again
        features = backbone(x, inserts)
        outs.append(torch.autograd.grad(features.pooled_BD.sum() + features.prompts_BPD.square().sum(), leaves))
    for once, twice in zip(*outs, strict=True):
        assert once.abs().sum() > 0
        assert torch.equal(once, twice)
    assert all(p.grad is None and not p.requires_grad for p in backbone.vit.parameters())


@each_family
def test_deep_features_have_five_parts_of_equal_length(family: str) -> None:
    backbone = make(family, torch.float32)
    features = backbone.deep(images(backbone, torch.float32)).unflatten(1, (-1, backbone.width))
    assert features.shape[1:] == (4, backbone.width)  # of three blocks, and the last part
    assert torch.allclose(features.square().mean(2), torch.ones(3, 4), atol=1e-4)
    assert len({tuple(features[0, i, :3].tolist()) for i in range(4)}) == 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_7b_patch16_dinov3", "GiB of memory for its weights alone"),
        ("beit_base_patch16_224", "it is a Beit and neither a VisionTransformer nor an Eva"),
        ("vit_relpos_base_patch16_224", "it is a VisionTransformerRelPos"),
        ("resnet50", "it is a ResNet"),
    ],
)
def test_what_cannot_be_used_is_refused_before_it_is_built(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Backbone.create(BackboneConfig(name=name, weights="random"))


@each_family
def test_a_file_of_weights_is_loaded_also_at_another_size(family: str, tmp_path: Path) -> None:
    backbone, path = make(family, torch.float32), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(backbone.vit.state_dict(), path)
    name, size, kwargs = FAMILIES[family]
    for side in (size, 2 * size):
        config = BackboneConfig(name=name, weights=str(path), image_size=side, kwargs=kwargs)
        loaded, x = Backbone.create(config), draw(2, 3, side, side, dtype=torch.float32)
        if side == size:
            assert torch.equal(loaded.query(x), backbone.query(x))
        assert loaded.query(x).shape == (2, backbone.width)
        last = "blocks.2.mlp.fc2.weight"
        assert torch.equal(loaded.vit.state_dict()[last], backbone.vit.state_dict()[last])


def test_backbones_are_listed_with_what_they_are() -> None:
    found = backbones("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert list(found.values()) == ["width 192, 12 blocks, 224 px, about 22 MB; for two processor cores and no GPU"]
    assert "vit_pe_core_tiny_patch16_384.fb" in backbones("pe_core_tiny")
    with pytest.raises(UserError, match=r"no pre-trained backbone fits swin_tiny: .* none can take inserts"):
        backbones("swin_tiny")
    with pytest.raises(UserError, match="fits vitt: none is called so"):
        backbones("vitt")
