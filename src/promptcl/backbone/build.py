"""Build the timm model of a configuration, or say why it cannot take inserts."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from timm.models import split_model_name_tag
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

_RESERVED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only"}
_RESERVED |= {"num_classes", "in_chans", "device", "dtype"}


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
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vit = timm.create_model(name, num_classes=0, **kwargs)
    except Exception as error:  # unknown tag or argument, values that exclude each other
        plain = "" if "vit" in architecture else "; choose a plain ViT such as vit_base_patch16_224"
        raise UserError(
            f"timm cannot build backbone.name={name} with {kwargs} ({weights.first_line(error)}){_tags(name)}{plain}"
        ) from error
    if reason := _unfit(vit):
        raise UserError(
            f"backbone.name={name} cannot take inserts, {reason}: choose a plain ViT such as vit_base_patch16_224"
        )
    _check_image_size(vit)
    return vit


def _tags(name: str) -> str:
    architecture, tag = split_model_name_tag(name)
    known = timm.list_pretrained(f"{architecture}.*")
    return f": its tags are {', '.join(n.split('.', 1)[1] for n in known)}" if tag and name not in known else ""


def _unfit(vit: nn.Module) -> str | None:
    """Why this model cannot take inserts; None if it can. With other attention, results would be silently wrong."""
    if not isinstance(vit, VisionTransformer):
        return f"it is a {type(vit).__name__} and not a timm VisionTransformer"
    if vit.cls_token is None:
        return "it has no class token"
    if type(vit.patch_embed) is not PatchEmbed:
        return f"its patch embedding is {type(vit.patch_embed).__name__}"
    if not len(vit.blocks):
        return "it has no block"
    for block in vit.blocks:
        if type(block) is not Block or type(block.attn) is not Attention:
            return f"its blocks are {type(block).__name__} with {type(getattr(block, 'attn', None)).__name__} attention"
    if isinstance(vit.norm, nn.Identity):
        return "its class token passes no final norm (the model pools its patches)"
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
