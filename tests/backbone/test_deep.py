"""The deep feature: class tokens after the last blocks and the mean of the patches, each of mean square 1."""

from __future__ import annotations

import pytest
import torch
from helpers import make_config

from promptcl.backbone import Backbone, Tokens


def make(depth: int) -> Backbone:
    backbone = make_config().backbone
    return Backbone.create(backbone.model_copy(update={"kwargs": {"depth": depth, "embed_dim": 48, "num_heads": 3}}))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_its_parts_are_tokens_after_blocks(depth: int) -> None:
    """Also of a ViT with fewer blocks than the feature has tokens of: what enters the first block says nothing."""
    backbone = make(depth)
    images_BCHW = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    deep_BF = backbone.query(images_BCHW, "deep")
    assert deep_BF.shape == (3, backbone.feature_width("deep")) == (3, 48 * (min(4, depth) + 1))
    vit, after = backbone.vit, []
    x_BND = vit.norm_pre(vit._pos_embed(vit.patch_embed(images_BCHW)))
    for block in vit.blocks:
        x_BND = block(x_BND)
        after.append(vit.norm(x_BND[:, 0]))
    parts = [*after[-4:], vit.norm(x_BND)[:, 1:].mean(1)]
    wanted_BF = torch.cat([part / part.square().mean(1, keepdim=True).sqrt() for part in parts], 1)
    torch.testing.assert_close(deep_BF, wanted_BF, rtol=1e-4, atol=1e-4)
    token_BD = deep_BF[:, -96:-48]
    pooled_BD = backbone.query(images_BCHW)
    torch.testing.assert_close(token_BD, pooled_BD / pooled_BD.square().mean(1, keepdim=True).sqrt())


def test_inserted_tokens_are_no_part_of_it() -> None:
    """They move it, but neither the class token nor the patches are taken for them."""
    backbone = make(4)
    images_BCHW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain_BF = backbone.deep(images_BCHW)
    with torch.no_grad():
        for layer in (0, 3):
            tokens = Tokens(layer, torch.zeros(1, 2, 48))
            moved_BF = backbone.deep(images_BCHW, [tokens])
            assert moved_BF.shape == plain_BF.shape
            token_BD = backbone(images_BCHW, [tokens]).pooled_BD
            wanted_BD = token_BD / token_BD.square().mean(1, keepdim=True).sqrt()
            torch.testing.assert_close(moved_BF[:, -96:-48], wanted_BD, rtol=1e-4, atol=1e-4)
            same = torch.isclose(moved_BF[:, :48], plain_BF[:, :48], atol=1e-6).all()
            assert same == (layer == 3)  # the class token after the first block
