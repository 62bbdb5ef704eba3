"""Acceptance tests of L2P++, on a small timm ViT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from plain_method import PlainTask, begin_task, make_method, plain_batch, shake

from promptcl.backbone import Backbone, Prefix
from promptcl.layers import PromptPool, cosine
from promptcl.methods._base import TaskView, masked_cross_entropy
from promptcl.methods.l2p_prefix import Model

DEEP = (0, 1, 2, 3, 4)


def make(backbone: Any, **options: Any) -> Model:
    return make_method(Model, backbone, **{"classes": 6, "head_init": "uniform", **options})


def pool(model: Model, number: int) -> PromptPool:
    return cast(PromptPool, model.pools[number])


@pytest.mark.parametrize(("layers", "count"), [((0,), 483_840), (DEEP, 2_419_200)], ids=["L2P++", "Deep L2P++"])
def test_number_of_parameters_at_the_width_of_vit_b(layers: tuple[int, ...], count: int) -> None:
    model = make(SimpleNamespace(width=768, depth=12), layers=layers, classes=0)
    assert sum(value.numel() for value in model.state_dict().values()) == count
    model.grow(cast(TaskView, PlainTask(1, 100)))
    assert sum(p.numel() for group in model.parameter_groups(0.1) for p in group["params"]) == count + 769 * 100


def test_an_image_gets_keys_and_values_of_the_prompts_nearest_to_it(backbone: Backbone) -> None:
    model, batch = make(backbone, layers=(1, 3), pool_size=6, top_k=2, length=3), plain_batch(backbone)
    shake(model)
    chosen, _ = model.select(batch.query_BD)
    inserts = []
    for number, layer in enumerate((1, 3)):
        best = cosine(batch.query_BD, pool(model, number).keys_MD).argsort(1, descending=True)[:, :2]
        assert torch.equal(chosen[number], best)
        rows = pool(model, number).prompts_MLD[best]  # [B, N, 2 L, D]
        keys, values = rows[:, :, :3].reshape(4, 6, -1), rows[:, :, 3:].reshape(4, 6, -1)
        inserts.append(Prefix(layer, keys, values))
    wanted = backbone(batch.images_BCHW, inserts).pooled_BD
    torch.testing.assert_close(model.features(backbone, batch, chosen), wanted)


def test_a_query_pulls_the_keys_that_it_chose_and_no_others(backbone: Backbone) -> None:
    model, batch = make(backbone, layers=(0, 1), pool_size=6, top_k=2, pull=0.5), plain_batch(backbone)
    shake(model)
    chosen, _ = model.select(batch.query_BD)
    rest = masked_cross_entropy(model.head(model.features(backbone, batch, chosen)), batch)
    pull = model.loss(backbone, batch) - rest
    by_hand = sum(
        torch.nn.functional.cosine_similarity(query, pool(model, layer).keys_MD[m], dim=0)
        for layer in range(2)
        for query, row in zip(batch.query_BD, chosen[layer], strict=True)
        for m in row
    )
    torch.testing.assert_close(pull, -0.5 * torch.as_tensor(by_hand) / 4, atol=1e-5, rtol=1e-5)
    model.zero_grad()
    model.loss(backbone, batch.rows([2])).backward()
    for layer in range(2):
        grad = pool(model, layer).keys_MD.grad
        assert grad is not None
        assert set(grad.abs().sum(1).nonzero()[:, 0].tolist()) == set(chosen[layer][2].tolist())


def test_gradient_reaches_the_pools_and_the_head_rows_of_the_task(backbone: Backbone) -> None:
    model = make(backbone, classes=2)
    begin_task(model, 1, 2)
    shake(model)
    model.loss(backbone, plain_batch(backbone, 6, 4).allowing(2, 3, of=4).rows([2, 3])).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.head.weight_KD.grad is not None
    assert not model.head.weight_KD.grad[:2].any()
    assert all(p.grad is None for p in backbone.parameters())


def test_a_selection_larger_than_the_pool_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="top_k=5 is more than pool_size=4"):
        make(backbone, pool_size=4)
