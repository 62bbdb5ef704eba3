"""Build the timm model of a configuration and load its weights, or say why it cannot take inserts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import AttentionRope  # type: ignore[attr-defined]
from timm.models import split_model_name_tag
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import (  # type: ignore[attr-defined]  # Attention has moved between versions
    Attention,
    Block,
    PatchEmbed,
    VisionTransformer,
)
from torch import nn

from promptcl.backbone import weights
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError

_HALF = (0.5, 0.5, 0.5)
_RESERVED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only"}
_RESERVED |= {"num_classes", "in_chans", "device", "dtype"}


@dataclass(frozen=True)
class Identity:
    """Which weights these are: architecture, pre-training tag, their file, a hash and what it is of."""

    name: str
    tag: str
    weights: str
    sha256: str
    sha256_of: str


def load(config: BackboneConfig) -> tuple[Any, Identity, Sequence[float], Sequence[float]]:
    """The timm model of a configuration with its weights, which they are, and the mean and deviation of its input."""
    vit = build(config)
    cfg = vit.pretrained_cfg
    name, tag = split_model_name_tag(config.name)
    mean, std = cfg["mean"], cfg["std"]
    if config.weights == "random":
        identity = Identity(name, "", "random", weights.tensors_sha256(vit), "tensors")
    else:
        repository = cfg.get("hf_hub_id")
        hub = (repository, cfg.get("hf_hub_filename") or "model.safetensors") if repository else None
        path = weights.locate(config.weights, config.name, hub)
        weights.load(vit, path, config.name, resample_patches="patch_size" in config.kwargs)
        source = path.name
        if config.weights == "hub":  # only then the default tag says where the weights are from
            name, tag, source = cfg["architecture"], cfg.get("tag") or "", f"{repository}/{path.name}"
        if path.suffix == ".npz":  # the JAX ViTs are trained on [-1, 1]
            mean, std = _HALF, _HALF
        identity = Identity(name, tag, source, weights.file_sha256(path), "file")
    if config.input_range == "unit":
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif config.input_range == "symmetric":
        mean, std = _HALF, _HALF
    elif config.input_range == "imagenet":
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return vit, identity, mean, std


def build(config: BackboneConfig) -> Any:
    """Build the timm model of a configuration with random weights. Raises UserError if it cannot take inserts."""
    name = config.name
    architecture, _ = split_model_name_tag(name)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3) or ["vit_base_patch16_224"]
        raise UserError(f"backbone.name={name} is no timm model: did you mean {' or '.join(near)}?")
    if reserved := _RESERVED & set(config.kwargs):
        raise UserError(
            f"backbone.kwargs may not hold {min(reserved)}: it is set by backbone.name and backbone.weights"
        )
    kwargs = dict(config.kwargs)
    if config.image_size is not None:
        kwargs["img_size"] = config.image_size
    _check(name, create(name, kwargs, torch.device("meta")))  # a model of 28 GB is refused before it fills memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, kwargs, torch.device("cpu"))


def create(name: str, kwargs: dict[str, Any], device: torch.device) -> Any:
    """The timm model without classifier on `device`. Raises UserError where timm cannot build it."""
    try:
        with device:
            return timm.create_model(name, num_classes=0, **kwargs)
    except Exception as error:  # unknown tag or argument, values that exclude each other
        plain = "" if "vit" in name else "; choose a plain ViT such as vit_base_patch16_224"
        raise UserError(
            f"timm cannot build backbone.name={name} with {kwargs} ({weights.first_line(error)}){_tags(name)}{plain}"
        ) from error


def _check(name: str, vit: Any) -> None:
    """Raise UserError for a model that cannot take inserts, an image size that does not fit, or too little memory."""
    if reason := unfit(vit):
        raise UserError(
            f"backbone.name={name} cannot take inserts, {reason}: choose a plain ViT such as vit_base_patch16_224"
        )
    _check_image_size(vit)
    needed, free = sum(p.numel() * p.element_size() for p in vit.parameters()) / 2**30, free_memory()
    if free is not None and needed > free / 2**30:
        raise UserError(
            f"backbone.name={name} needs {needed:.1f} GiB of memory for its weights alone, {free / 2**30:.1f} GiB are "
            "free here: choose a smaller one (`promptcl list backbones`)"
        )


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine; None where the system does not say."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _tags(name: str) -> str:
    architecture, tag = split_model_name_tag(name)
    known = timm.list_pretrained(f"{architecture}.*")
    return f": its tags are {', '.join(n.split('.', 1)[1] for n in known)}" if tag and name not in known else ""


def has_class_feature(vit: Any) -> bool:
    """Whether the feature of an image is its class token after the final norm. Else it is what the model pools itself,
    because it has no class token, pools by attention (SigLIP, Perception Encoder), or pools before its norm.
    """
    return vit.cls_token is not None and vit.attn_pool is None and not isinstance(vit.norm, nn.Identity)


def unfit(vit: Any) -> str | None:
    """Why this model cannot take inserts; None if it can. With other attention, results would be silently wrong."""
    if not isinstance(vit, VisionTransformer | Eva):
        return f"it is a {type(vit).__name__} and neither a VisionTransformer nor an Eva of timm"
    if type(vit.patch_embed) is not PatchEmbed:
        return f"its patch embedding is {type(vit.patch_embed).__name__}"
    if not len(vit.blocks):
        return "it has no block"
    known = {Block: (Attention,), EvaBlock: (EvaAttention, AttentionRope)}
    for block in vit.blocks:
        attention: Any = getattr(block, "attn", None)
        if type(attention) not in known.get(type(block), ()):
            return f"its blocks are {type(block).__name__} with {type(attention).__name__} attention"
        if getattr(attention, "num_kv_groups", 1) > 1:
            return "several of its heads share keys and values"
        if attention.proj.in_features != vit.embed_dim:
            return f"its heads are {attention.proj.in_features} wide together and its tokens {vit.embed_dim}"
    if not has_class_feature(vit) and isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity):
        return "its tokens pass no final norm"
    return None


def _check_image_size(vit: Any) -> None:
    height, width = vit.patch_embed.img_size
    patch = max(vit.patch_embed.patch_size)
    if height != width:
        raise UserError(f"the backbone takes {height}x{width} images, expected a square: set backbone.image_size")
    if any(height % side for side in vit.patch_embed.patch_size):
        low = height // patch * patch
        near = f"{low} or {low + patch}" if low else str(patch)
        raise UserError(f"backbone.image_size={height} is not a multiple of the patch size {patch}: take {near}")
