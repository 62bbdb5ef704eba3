"""The frozen ViT: timm without prompts, prompts where they belong, the pruned last block exact, misuse refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from promptcl.backbone.inserts import Tokens
from promptcl.backbone.vit import Backbone
from promptcl.backbone.weights import tensors_sha256
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError

NEW_TIMM = "attn_layer" in inspect.signature(VisionTransformer).parameters
SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3}
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", 64, {}),
    "deit": ("deit_tiny_patch16_224", 64, {}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", 64, {}),
    "deit3": ("deit3_small_patch16_224", 64, {}),
    "dinov2": ("vit_small_patch14_dinov2", 56, {}),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", 56, {}),
    "clip": ("vit_base_patch32_clip_224", 96, {}),
    "clip quickgelu": ("vit_base_patch16_clip_quickgelu_224", 64, {}),
    "query and key norms": ("vit_tiny_patch16_224", 64, {"qk_norm": True}),
    "no bias, dynamic size": ("vit_tiny_patch16_224", 64, {"qkv_bias": False, "dynamic_img_size": True}),
    "drop rates": (
        "vit_tiny_patch16_224",
        64,
        {"patch_drop_rate": 0.5, "drop_path_rate": 0.5, "attn_drop_rate": 0.5, "proj_drop_rate": 0.5},
    ),
}
if NEW_TIMM:
    FAMILIES["output norms"] = ("vit_tiny_patch16_224", 64, {"scale_attn_norm": True, "scale_mlp_norm": True})


def small(name: str = "vit_tiny_patch16_224", size: int = 64, **kwargs: Any) -> Backbone:
    """A small random model; noise on every parameter, or layer scales of 1e-5 would hide mistakes."""
    kwargs = {**SMALL, **kwargs}
    backbone = Backbone.create(BackboneConfig(name=name, weights="random", image_size=size, kwargs=kwargs))
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.vit.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone


def images(backbone: Backbone, count: int = 3) -> Tensor:
    size = backbone.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def prompt(layer: int, length: int, count: int = 3, width: int = 48) -> Tokens:
    tokens = torch.randn(count, length, width, generator=torch.Generator().manual_seed(10 + layer))
    return Tokens(layer, tokens.requires_grad_())


@pytest.mark.parametrize("family", FAMILIES)
def test_without_prompts_tokens_are_timm_bit_for_bit(family: str) -> None:
    name, size, kwargs = FAMILIES[family]
    backbone = small(name, size, **kwargs)
    x = images(backbone)
    twin: Any = timm.create_model(name, num_classes=0, img_size=size, **SMALL, **kwargs).eval()
    twin.load_state_dict(backbone.vit.state_dict())
    with torch.no_grad():
        expected = twin.forward_features(x)
    assert torch.equal(backbone.tokens(x), expected)
    assert torch.allclose(backbone.query(x), expected[:, 0], atol=1e-5)
    features = backbone(x)
    assert torch.equal(features.pooled_BD, backbone.query(x))
    assert features.prompts_BPD.shape == (3, 0, 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_enter_in_front_of_their_block(family: str) -> None:
    name, size, kwargs = FAMILIES[family]
    backbone = small(name, size, **kwargs)
    x = images(backbone)
    first, second, middle, last = prompt(0, 2), prompt(0, 1), prompt(1, 3), prompt(2, 2)
    vit = backbone.vit
    expected = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    expected = vit.blocks[0](torch.cat([first.tokens_BLD, second.tokens_BLD, expected], 1))
    expected = vit.blocks[1](torch.cat([middle.tokens_BLD, expected], 1))
    expected = vit.norm(vit.blocks[2](torch.cat([last.tokens_BLD, expected], 1)))
    prompts = [last, first, second, middle]
    assert torch.equal(backbone.tokens(x, prompts), expected)
    features = backbone(x, prompts)
    assert torch.allclose(features.prompts_BPD, expected[:, :8], atol=1e-5)
    assert torch.allclose(features.pooled_BD, expected[:, 8], atol=1e-5)
    plain = backbone.query(x)
    assert not torch.allclose(features.pooled_BD, plain, atol=1e-2)  # the prompts do something


def test_a_gated_attention_is_pruned_correctly() -> None:
    backbone = small()
    for block in backbone.vit.blocks:
        if not hasattr(block.attn, "gate"):
            pytest.skip("this timm has no gated attention")
        block.attn.gate = nn.Linear(48, 48)
    x = images(backbone)
    assert torch.allclose(backbone.query(x), backbone.tokens(x)[:, 0], atol=1e-5)


def test_gradients_reach_the_prompts_and_nothing_else() -> None:
    backbone = small()
    x = images(backbone)
    early, late = prompt(1, 2), prompt(2, 2)
    graph: list[bool] = []
    for block in backbone.vit.blocks[:2]:
        block.register_forward_hook(lambda _m, _i, out: graph.append(out.requires_grad))
    features = backbone(x, [early, late])
    assert graph == [False, True]  # nothing is recorded before the first prompted block
    weight = torch.randn(features.prompts_BPD.shape)
    pruned = torch.autograd.grad((features.prompts_BPD * weight).sum(), [early.tokens_BLD, late.tokens_BLD])
    full = (backbone.tokens(x, [early, late])[:, :4] * weight).sum()
    for a, b in zip(pruned, torch.autograd.grad(full, [early.tokens_BLD, late.tokens_BLD]), strict=True):
        assert a.abs().max() > 1e-3
        assert torch.allclose(a, b, atol=1e-4)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.query(x).requires_grad


def test_the_order_of_prompt_tokens_at_layer_0_does_not_matter() -> None:
    backbone = small()
    x, tokens = images(backbone), prompt(0, 5).tokens_BLD.detach()
    order = torch.tensor([3, 0, 4, 1, 2])
    straight, permuted = backbone(x, [Tokens(0, tokens)]), backbone(x, [Tokens(0, tokens[:, order])])
    assert torch.allclose(straight.pooled_BD, permuted.pooled_BD, atol=1e-5)
    assert torch.allclose(straight.prompts_BPD[:, order], permuted.prompts_BPD, atol=1e-5)


def test_the_other_images_of_a_batch_change_nothing() -> None:
    backbone = small()
    x, one = images(backbone, 7), prompt(0, 4, count=7)
    alone = torch.cat([backbone.query(x[i : i + 1]) for i in range(7)])
    assert torch.allclose(alone, backbone.query(x), atol=1e-5)
    together = backbone(x, [one]).prompts_BPD
    single = backbone(x[6:], [Tokens(0, one.tokens_BLD[6:])]).prompts_BPD
    assert torch.allclose(single, together[6:], atol=1e-5)


def test_train_keeps_it_in_eval_mode() -> None:
    backbone = small(drop_path_rate=0.9, proj_drop_rate=0.9)
    x = images(backbone)
    before = backbone.query(x)
    nn.ModuleList([backbone]).train()
    assert not any(module.training for module in backbone.modules())
    assert torch.equal(backbone.query(x), before)


def test_class_position() -> None:
    for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"):
        backbone = small(name)
        fresh = Backbone.create(BackboneConfig(name=name, weights="random", image_size=64, kwargs=SMALL))
        assert torch.equal(fresh.class_position_D, fresh.vit.pos_embed[0, 0])
        assert fresh.class_position_D.abs().sum() > 0
        assert backbone.class_position_D.shape == (48,)
    for name, size in (("vit_small_patch14_reg4_dinov2", 56), ("deit3_small_patch16_224", 64)):
        assert torch.equal(small(name, size).class_position_D, torch.zeros(48))


def test_input_ranges() -> None:
    x = torch.rand(2, 3, 4, 4)
    make = {
        r: Backbone.create(BackboneConfig(name="test_vit", weights="random", input_range=r))
        for r in ("unit", "symmetric", "imagenet")
    }
    assert torch.equal(make["unit"].normalise(x), x)
    assert torch.allclose(make["symmetric"].normalise(x), 2 * x - 1)
    red, _, blue = make["imagenet"].normalise(x)[0]
    assert torch.allclose(red, (x[0, 0] - 0.485) / 0.229)
    assert torch.allclose(blue, (x[0, 2] - 0.406) / 0.225)
    imagenet = small("deit_tiny_patch16_224")
    cfg = timm.get_pretrained_cfg("deit_tiny_patch16_224")
    assert cfg is not None
    expected = (x[:, 1] - cfg.mean[1]) / cfg.std[1]
    assert torch.allclose(imagenet.normalise(x)[:, 1], expected)


def test_autocast_gives_float32_outputs() -> None:
    backbone = small()
    x, one = images(backbone), prompt(0, 4)
    plain = backbone(x, [one])
    with torch.autocast("cpu", torch.bfloat16):
        features, tokens, query = backbone(x, [one]), backbone.tokens(x), backbone.query(x)
    assert {t.dtype for t in (*features, tokens, query)} == {torch.float32}
    assert torch.allclose(features.prompts_BPD, plain.prompts_BPD, atol=0.2)
    features.prompts_BPD.sum().backward()
    assert one.tokens_BLD.grad is not None


def test_random_weights_are_the_same_in_every_run_and_disturb_no_generator() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = Backbone.create(BackboneConfig(name="test_vit", weights="random"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = Backbone.create(BackboneConfig(name="test_vit", weights="random"))
    assert first.describe() == second.describe()
    assert first.describe()["sha256_of"] == "tensors"
    second.vit.cls_token.add_(1.0)
    assert tensors_sha256(second.vit) != first.sha256


REFUSED = {
    "swin_tiny_patch4_window7_224": "SwinTransformer",
    "convnext_atto": "ConvNeXt",
    "beit_base_patch16_224": "Beit",
    "vit_base_patch16_xp_224": "ParallelScalingBlock",
    "vit_base_patch16_224": "no final norm",
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_prompts_cannot_enter_are_refused(name: str) -> None:
    kwargs: dict[str, Any] = {}
    if not name.startswith(("swin", "convnext")):
        kwargs = {"depth": 1, "embed_dim": 64, "num_heads": 2}
    if REFUSED[name] == "no final norm":
        kwargs |= {"final_norm": False}
    with pytest.raises(UserError, match=REFUSED[name]):
        Backbone.create(BackboneConfig(name=name, weights="random", kwargs=kwargs))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "vit_tny_patch16_224"}, "no timm model: did you mean .*vit_tiny_patch16_224"),
        ({"name": "vit_tiny_patch16_224.augreg"}, "Invalid pretrained tag.*augreg_in21k_ft_in1k"),
        ({"image_size": 100}, "100 is not a multiple of the patch size 16: take 96 or 112"),
        ({"image_size": 5, "kwargs": {}}, "5 is not a multiple of the patch size 16: take 16"),
        ({"kwargs": {"dept": 3}}, "dept"),
        ({"kwargs": {"num_classes": 3}}, "may not hold num_classes"),
        ({"kwargs": {"img_size": [64, 32]}}, "64x32 images, expected a square"),
        ({"kwargs": {"attn_layer": "diff"}}, "DiffAttention" if NEW_TIMM else "timm cannot build"),
        ({"name": "convnext_atto", "image_size": 64}, "timm cannot build"),
    ],
)
def test_bad_configurations_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone.create(BackboneConfig(**{"name": "vit_tiny_patch16_224", "weights": "random", **config}))


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_prompt_at_a_layer_that_does_not_exist_is_refused(layer: int) -> None:
    backbone = small()
    with pytest.raises(UserError, match="layers 0 to 2"):
        backbone(images(backbone), [prompt(layer, 1)])


@pytest.mark.slow
def test_real_weights_at_their_own_and_another_size(assets: Path) -> None:
    path = assets / "weights" / "vit_tiny_patch16_224.safetensors"
    state = {key: value for key, value in load_file(path).items() if not key.startswith("head.")}
    reference: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    reference.load_state_dict(state)
    for size in (224, 96):
        reference.set_input_size((size, size))
        backbone = Backbone.create(BackboneConfig(name="vit_tiny_patch16_224", weights=str(path), image_size=size))
        x = images(backbone, 2)
        with torch.no_grad():
            expected = reference.forward_features(x)
        if size == 224:
            assert torch.equal(backbone.tokens(x), expected)
        assert torch.allclose(backbone.tokens(x), expected, atol=1e-4)
        assert torch.allclose(backbone.query(x), backbone.tokens(x)[:, 0], atol=1e-4)


def test_activation_checkpointing_gives_the_same_gradient() -> None:
    config = BackboneConfig(name="vit_tiny_patch16_224", weights="random", image_size=64, kwargs=SMALL)
    plain = Backbone.create(config)
    thrifty = Backbone.create(config.model_copy(update={"activation_checkpointing": True}))
    images = torch.rand(2, 3, 64, 64)
    gradients, kept = [], []
    for backbone in (plain, thrifty):
        tokens = torch.full((2, 4, 48), 0.1, requires_grad=True)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = backbone(images, [Tokens(0, tokens)]).prompts_BPD.square().sum()
        out.backward()
        assert tokens.grad is not None
        gradients.append(tokens.grad)
        kept.append(sum(sizes))
    assert torch.equal(gradients[0], gradients[1])
    assert kept[1] < kept[0] / 2
