"""Weight files of the real formats are read exactly; every other file is refused in one sentence and never executed."""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError

NAME = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def state_of(name: str = NAME, **kwargs: Any) -> dict[str, Tensor]:
    """State dict with a classifier, every tensor random."""
    model = timm.create_model(name, **{**SMALL, "num_classes": 7, **kwargs})
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(value.shape, generator=generator) for key, value in model.state_dict().items()}


def load(path: Path, name: str = NAME, image_size: int | None = None, **kwargs: Any) -> Backbone:
    return Backbone.create(
        BackboneConfig(name=name, weights=str(path), image_size=image_size, kwargs={**SMALL, **kwargs})
    )


def assert_holds(backbone: Backbone, state: dict[str, Tensor]) -> None:
    loaded = backbone.vit.state_dict()
    assert loaded.keys() == {key for key in state if not key.startswith("head")}
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key


def jax_names(state: dict[str, Tensor], heads: int, classes: int = 21843) -> dict[str, Any]:
    """A timm state dict under the names and shapes of ViT-B_16.npz (google-research, ImageNet-21k)."""
    s = {key: value.numpy() for key, value in state.items()}
    width = s["cls_token"].shape[-1]
    out = {
        "cls": s["cls_token"],
        "embedding/kernel": s["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": s["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": s["pos_embed"],
        "Transformer/encoder_norm/scale": s["norm.weight"],
        "Transformer/encoder_norm/bias": s["norm.bias"],
        "pre_logits/kernel": np.zeros((width, width), np.float32),
        "pre_logits/bias": np.zeros(width, np.float32),
        "head/kernel": np.zeros((width, classes), np.float32),
        "head/bias": np.zeros(classes, np.float32),
    }
    for i in range(sum(key.endswith("attn.qkv.weight") for key in s)):
        block, to = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{to}MultiHeadDotProductAttention_1/"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{to}{theirs}/scale"], out[f"{to}{theirs}/bias"] = s[f"{block}{ours}.weight"], s[f"{block}{ours}.bias"]
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * width, (j + 1) * width)
            out[f"{attention}{part}/kernel"] = s[f"{block}attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            out[f"{attention}{part}/bias"] = s[f"{block}attn.qkv.bias"][rows].reshape(heads, -1)
        out[f"{attention}out/kernel"] = s[f"{block}attn.proj.weight"].T.reshape(heads, -1, width)
        out[f"{attention}out/bias"] = s[f"{block}attn.proj.bias"]
        for j in (0, 1):
            out[f"{to}MlpBlock_3/Dense_{j}/kernel"] = s[f"{block}mlp.fc{j + 1}.weight"].T
            out[f"{to}MlpBlock_3/Dense_{j}/bias"] = s[f"{block}mlp.fc{j + 1}.bias"]
    return out


def test_safetensors(tmp_path: Path) -> None:
    state, path = state_of(), tmp_path / "vit.safetensors"
    save_file(state, path)
    backbone = load(path)
    assert_holds(backbone, state)
    assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    described = backbone.describe()
    assert (described["weights"], described["sha256_of"], described["tag"]) == ("vit.safetensors", "file", "")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("suffix", ["pth", "bin"])
def test_torch_files(tmp_path: Path, wrapper: str | None, suffix: str) -> None:
    state, path = state_of(), tmp_path / f"vit.{suffix}"
    content: Any = {f"module.{key}": value for key, value in state.items()}
    if wrapper:
        content = {wrapper: content, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path)
    assert_holds(load(path), state)


@pytest.mark.parametrize("prefix", ["backbone.", "model.vit.", "module.student.encoder.", "_orig_mod.", "net.0."])
def test_whatever_stands_around_the_names(tmp_path: Path, prefix: str) -> None:
    """A checkpoint of a trainer: a deep wrapping, an optimiser, a loss and a head beside the ViT."""
    state, path = state_of(), tmp_path / "last.ckpt.pth"
    inner = {f"{prefix}{key}": value for key, value in state.items()} | {"criterion.centre": torch.ones(3)}
    torch.save({"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}, "net": {"weights": inner}}, path)
    assert_holds(load(path), state)


def test_of_student_and_teacher_the_teacher_is_read(tmp_path: Path) -> None:
    state, path = state_of(), tmp_path / "dino.pth"
    other = {f"module.backbone.{key}": torch.zeros_like(value) for key, value in state.items()}
    torch.save({"student": other, "teacher": {f"backbone.{key}": value for key, value in state.items()}}, path)
    assert_holds(load(path), state)


def test_other_names_are_shown_beside_ours(tmp_path: Path) -> None:
    state = {f"encoder.layer.{i}.attention.query.weight": torch.ones(2, 2) for i in range(4)}
    torch.save({"state_dict": {"vit.embeddings.cls_token": torch.ones(1, 1, 2), **state}}, tmp_path / "hf.bin")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "hf.bin")
    for name in ("vit.embeddings.cls_token", *list(state)[:2], "cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert name in str(caught.value)


def test_a_torch_file_with_code_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (mark,))

    path = tmp_path / "vit.pth"
    torch.save({"state_dict": state_of(), "extra": Bomb()}, path)
    torch.load(path, weights_only=False)
    assert mark.exists()  # the bomb works
    mark.unlink()
    with pytest.raises(UserError, match="refused"):
        load(path)
    assert not mark.exists()


def test_jax_npz(tmp_path: Path) -> None:
    state, path = state_of("deit_tiny_patch16_224", depth=12), tmp_path / "ViT.npz"
    np.savez(path, **jax_names(state, heads=3, classes=11))
    backbone = load(path, "deit_tiny_patch16_224", depth=12)
    assert_holds(backbone, state)
    assert backbone.mean.tolist() == [0.5] * 3  # not the ImageNet values of this timm name
    assert backbone.std.tolist() == [0.5] * 3


@pytest.mark.slow
def test_jax_npz_with_the_true_names_and_shapes_of_vit_base(tmp_path: Path) -> None:
    size = {"embed_dim": 768, "num_heads": 12}  # two of the twelve blocks
    state, path = state_of("vit_base_patch16_224", **size), tmp_path / "ViT-B_16.npz"
    arrays = jax_names(state, heads=12)
    assert arrays["head/kernel"].shape == (768, 21843)
    assert arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel"].shape == (12, 64, 768)
    assert len(arrays) == 10 + 2 * 16
    np.savez(path, **arrays)
    backbone = load(path, "vit_base_patch16_224.augreg_in21k", **size)
    assert_holds(backbone, state)
    assert (backbone.name, backbone.tag) == ("vit_base_patch16_224", "augreg_in21k")


def test_npz_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "vit.npz"
    arrays = jax_names(state_of(), heads=3, classes=2)
    arrays["cls"] = np.array([object()], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="allow_pickle"):
        load(path)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_another_image_size_resamples_the_position_embedding(tmp_path: Path, suffix: str) -> None:
    state, path = state_of(), tmp_path / f"vit.{suffix}"
    state["pos_embed"][:, 1:] = 4.0
    if suffix == "npz":
        np.savez(path, **jax_names(state, heads=3, classes=2))
    else:
        save_file(state, path)
    position = load(path, image_size=96).vit.pos_embed
    assert position.shape == (1, 1 + 36, 48)
    assert torch.equal(position[:, 0], state["pos_embed"][:, 0])
    assert torch.allclose(position[:, 1:], torch.full((1, 36, 48), 4.0), atol=1e-4)


def test_deit3_and_dinov2_files_under_their_authors_names(tmp_path: Path) -> None:
    state, path = state_of("deit3_small_patch16_224"), tmp_path / "deit3.pth"
    torch.save({"model": {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in state.items()}}, path)
    assert_holds(load(path, "deit3_small_patch16_224"), state)

    state, path = state_of("vit_small_patch14_reg4_dinov2", img_size=56), tmp_path / "dinov2.pth"
    theirs = {key: value for key, value in state.items() if not key.startswith("head")}
    register = theirs.pop("reg_token")
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), theirs["pos_embed"]], 1)
    torch.save({**theirs, "register_tokens": register, "mask_token": torch.zeros(1, 48)}, path)
    assert_holds(load(path, "vit_small_patch14_reg4_dinov2", image_size=56), state)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "npz"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    state, path = state_of(), tmp_path / f"vit.{suffix}"
    if suffix == "npz":
        np.savez(path, **jax_names(state, heads=3, classes=2))
    elif suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"embed_dim": 96}, "holds width 48, vit_tiny_patch16_224 has 96: set backbone.name"),
        ({"depth": 3}, r"lacks blocks\.2\.norm1\.weight|holds blocks: 2, vit_tiny_patch16_224 has 3"),
        ({"depth": 1}, r"holds blocks\.1\.\S+, which|holds blocks: 2, vit_tiny_patch16_224 has 1"),
        ({"name": "vit_small_patch32_224"}, "holds patches of 16x16, vit_small_patch32_224 has 32x32"),
        ({"mlp_ratio": 2.0}, r"fc1.weight has shape \(192, 48\).*\(96, 48\)|cannot be read as the JAX .npz weights"),
        ({"init_values": 1e-5}, r"lacks blocks.0.ls1.gamma|has no value for blocks.0.ls1.gamma"),
    ],
)
def test_files_of_another_model_are_refused(tmp_path: Path, suffix: str, kwargs: dict[str, Any], message: str) -> None:
    path = tmp_path / f"vit.{suffix}"
    if suffix == "npz":
        np.savez(path, **jax_names(state_of(), heads=3, classes=2))
    else:
        save_file(state_of(), path)
    with pytest.raises(UserError, match=message):
        load(path, **kwargs)


def test_other_misfits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "heads.npz"
    np.savez(path, **jax_names(state_of(), heads=3, classes=2))
    with pytest.raises(UserError, match="holds attention heads: 3, vit_tiny_patch16_224 has 4"):
        load(path, num_heads=4)
    np.savez(path, **jax_names(state_of(), heads=3, classes=2), prompt_pool=np.zeros(3))
    with pytest.raises(UserError, match="holds prompt_pool"):
        load(path)
    np.savez(path, values=np.zeros(3))
    with pytest.raises(UserError, match="lacks embedding/kernel"):
        load(path)
    path = tmp_path / "distilled.safetensors"
    save_file(state_of("deit_tiny_distilled_patch16_224"), path)
    with pytest.raises(UserError, match="holds dist_token"):
        load(path)
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    with pytest.raises(UserError, match=r"resnet\.pth has other names than .*conv1.*, where cls_token, pos_embed, "):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds a list, expected a state dict"):
        load(path)


def test_missing_files_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*vit\.pth"):
        load(tmp_path / "vit.pth")
    with pytest.raises(UserError, match="expected hub, random, embedded or a file ending in"):
        load(tmp_path / "vit.onnx")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "folder.pth")
