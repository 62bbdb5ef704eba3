"""A Weight in the place of a layer's own does what a model with that weight does."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from promptcl.backbone import Backbone, Change, Matrix, Prefix, Tokens, Weight
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError
from promptcl.layers.lora import matrix, parts_of

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 2}
EVA = "eva02_tiny_patch14_224"
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", 32, SMALL),
    "one projection, bias apart": (EVA, 28, SMALL),
    "three projections": (EVA, 28, {**SMALL, "qkv_fused": False}),
}
OTHERS = {"gated in two": (EVA, 28, {**SMALL, "scale_mlp": True})}


def make(family: str, **config: Any) -> Backbone:
    name, size, kwargs = {**FAMILIES, **OTHERS}[family]
    return Backbone.create(BackboneConfig(name=name, weights="random", image_size=size, kwargs=kwargs, **config))


def images(backbone: Backbone) -> Tensor:
    side = backbone.image_size
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", get_args(Matrix))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_the_model_with_that_weight(family: str, place: Matrix, precision: str) -> None:
    """Alone, beside tokens and prefixes, in all rows and in those that are read; the plain model is not changed."""
    backbone, generator = make(family, precision=precision), torch.Generator().manual_seed(1)
    x, plain = images(backbone), make(family, precision=precision).query(images(backbone))
    other = backbone.copy().requires_grad_(False)
    inserts = []
    for layer in range(backbone.depth):
        parts = parts_of(other, layer, place)
        for part in parts:
            part += 0.1 * torch.randn(part.shape, generator=generator)
        inserts.append(Weight(layer, place, torch.cat(parts)))
    tokens, rows = Tokens(0, torch.ones(1, 2, backbone.width)), torch.ones(1, 2, backbone.width)
    for more in ([], [tokens], [Prefix(1, rows, -rows)]):
        assert torch.equal(backbone(x, [*inserts, *more]).pooled_BD, other(x, more).pooled_BD)
        assert torch.equal(backbone.tokens(x, [*inserts, *more]), other.tokens(x, more))
    assert (backbone(x, inserts).pooled_BD - plain).abs().max() > 1e-3
    assert torch.equal(backbone.query(x), plain)


def test_the_weights_of_the_model_give_its_bits_and_gradients_come_through() -> None:
    backbone = make("vit")
    backbone.activation_checkpointing = True
    x = images(backbone)
    own = [Weight(layer, place, matrix(backbone, layer, place)) for layer in (0, 1) for place in get_args(Matrix)]
    assert torch.equal(backbone(x, own).pooled_BD, backbone(x).pooled_BD)
    leaves = [torch.zeros_like(one.weight_oi).requires_grad_() for one in own]
    changed = [Weight(one.layer, one.place, one.weight_oi + leaf) for one, leaf in zip(own, leaves, strict=True)]
    backbone(x, changed).pooled_BD.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize(
    ("family", "layer", "place", "message"),
    [
        ("vit", 2, "fc1", "Weight at layer 2: .* has layers 0 to 1"),
        ("vit", 0, "k", "a Weight has place='k', expected one of qkv, proj, fc1, fc2"),
        ("vit", 0, "qkv", r"a Weight at qkv of layer 0 is \[1, 2\], expected \[144, 48\]: \[outputs, inputs\]"),
        ("three projections", 1, "qkv", r"a Weight at qkv of layer 1 is \[1, 2\], expected \[144, 48\]"),
        ("gated in two", 0, "fc1", "a Weight at fc1 of layer 0 needs a plain MLP, this one is a SwiGLU"),
    ],
)
def test_what_does_not_fit_is_refused(family: str, layer: int, place: Any, message: str) -> None:
    backbone = make(family)
    with pytest.raises(UserError, match=message):
        backbone(images(backbone), [Weight(layer, place, torch.zeros(1, 2))])


def test_a_change_applies_to_what_comes_out() -> None:
    backbone = make("vit")
    x = images(backbone)
    after = [Change(0, "fc1", lambda _, y: y * 0), Weight(0, "fc1", matrix(backbone, 0, "fc1"))]
    assert torch.equal(backbone(x, after).pooled_BD, backbone(x, after[:1]).pooled_BD)
