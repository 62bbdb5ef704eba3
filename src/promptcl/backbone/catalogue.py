"""Which backbones can be used: those that are a good choice for something, or all whose name contains a word."""

from __future__ import annotations

import logging

import timm
import torch

from promptcl.backbone.build import create, unfit
from promptcl.config.messages import did_you_mean
from promptcl.errors import UserError

GOOD_FOR = {
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": "two processor cores and no GPU",
    "vit_small_patch16_224.augreg_in21k_ft_in1k": "photos on a laptop",
    "vit_base_patch16_224.augreg_in21k": "the benchmarks of this field: L2P's own weights, ImageNet-21k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k": "the benchmarks of CODA-Prompt and its successors",
    "vit_small_patch14_reg4_dinov2.lvd142m": "fine differences, textures, images unlike photos; learned without labels",
    "vit_base_patch16_dinov3.lvd1689m": "fine differences, with a GPU; without labels (licence has conditions)",
    "vit_base_patch16_siglip_224.v2_webli": "things that have names: learned from images and their texts",
    "vit_pe_core_tiny_patch16_384.fb": "things that have names, on a laptop",
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k": "accuracy before speed",
}
"""Pre-trained weights -> what they are a good choice for."""
_DOWNLOAD = 4  # bytes a number in the files that timm publishes


def backbones(word: str | None = None) -> dict[str, str]:
    """Name -> one line: width, blocks, input in pixels, size of the download, and what it is a good choice for.

    word: all pre-trained models of timm whose name contains it and that promptcl can use; None: those of `GOOD_FOR`.
    Nothing is downloaded, and no weights are made. Raises UserError where nothing fits.
    """
    named = timm.list_pretrained()
    wanted = [name for name in named if word in name] if word else list(GOOD_FOR)
    found = {name: line for name in wanted if (line := _line(name))}
    if not found:
        reason = f"{len(wanted)} models of timm are called so, none can take inserts" if wanted else "none is called so"
        raise UserError(f"no pre-trained backbone fits {word}: {reason}{did_you_mean(str(word), named)}")
    return found


def _line(name: str) -> str | None:
    """What stands behind a name; None for a model that cannot take inserts."""
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        vit = create(name, {}, torch.device("meta"))
    except UserError:  # models that timm itself cannot build without weights are no plain ViTs
        return None
    if unfit(vit):
        return None
    numbers = sum(p.numel() for p in vit.parameters())
    size = f"{vit.patch_embed.img_size[0]} px, about {_DOWNLOAD * numbers / 1e6:,.0f} MB"
    good = f"; for {GOOD_FOR[name]}" if name in GOOD_FOR else ""
    return f"width {vit.embed_dim}, {len(vit.blocks)} blocks, {size}{good}"
