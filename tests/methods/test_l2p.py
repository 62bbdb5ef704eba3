"""Acceptance tests of the L2P specification, on a small timm ViT."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from plain_method import begin_task, make_method, plain_batch, shake
from pydantic import ValidationError
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import TrainConfig
from promptcl.errors import UserError
from promptcl.layers.prompts import top_n
from promptcl.methods._base import TaskView
from promptcl.methods.l2p import L2POptions, Model
from promptcl.training import PastTask
from promptcl.training.optim import effective_lr


def make(backbone: Backbone, **options: Any) -> Model:
    return make_method(Model, backbone, **options)


def test_at_initialisation(backbone: Backbone) -> None:
    model, batch = make(backbone, pull=0.5), plain_batch(backbone)
    assert torch.equal(model.logits(backbone, batch), torch.zeros(4, 6))
    loss = model.loss(backbone, batch.allowing(0, 1, 2, of=6))
    index, similarity = model.select(batch.query_BD)
    pull = similarity.gather(1, index).sum(1).mean()
    assert loss.item() == pytest.approx(math.log(3) - 0.5 * pull.item(), abs=1e-5)
    loss.backward()
    prompts, keys, head = model.pool.prompts_MLD.grad, model.pool.keys_MD.grad, model.head.weight_KD.grad
    assert prompts is not None
    assert keys is not None
    assert head is not None
    assert not prompts.any()  # the zero head passes nothing back at the first step
    selected = set(index.flatten().tolist())
    assert {m for m in range(10) if keys[m].any()} == selected
    assert {k for k in range(6) if head[k].any()} == {0, 1, 2}
    assert all(p.grad is None for p in backbone.parameters())


def test_pull_is_n_when_every_selected_key_is_parallel_to_every_query(backbone: Backbone) -> None:
    model, batch = make(backbone, pull=1.0, top_k=3), plain_batch(backbone)
    query = torch.randn(1, backbone.width)
    with torch.no_grad():
        model.pool.keys_MD.copy_(query * 7)
    parallel = replace(batch, query_BD=query.expand(4, -1))
    assert model.loss(backbone, parallel).item() == pytest.approx(math.log(6) - 3.0, abs=1e-5)


def test_gradient_flow_is_separated(backbone: Backbone) -> None:
    """Keys learn from the pull term alone; prompts and head from the cross-entropy alone (as in the release)."""
    model, batch = make(backbone, pull=0.0), plain_batch(backbone)
    shake(model)
    model.loss(backbone, batch).backward()
    assert model.pool.keys_MD.grad is not None
    assert not model.pool.keys_MD.grad.any()
    assert model.pool.prompts_MLD.grad is not None
    touched = {m for m in range(10) if model.pool.prompts_MLD.grad[m].any()}
    assert touched == set(model.select(batch.query_BD)[0].flatten().tolist())


def test_order_of_selected_prompts_does_not_matter(backbone: Backbone) -> None:
    model, batch = make(backbone), plain_batch(backbone)
    shake(model)
    index, _ = model.select(batch.query_BD)
    features = [model.features(backbone, batch, i) for i in (index, index.flip(1))]
    torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("position", ["none", "class"])
def test_prompts_and_their_position_reach_the_feature(backbone: Backbone, position: str) -> None:
    model, batch = make(backbone, position=position), plain_batch(backbone)
    shake(model)
    index, _ = model.select(batch.query_BD)
    added = backbone.class_position_D if position == "class" else torch.zeros(backbone.width)
    tokens: Tensor = model.pool.take(index) + added
    x = backbone.vit._pos_embed(backbone.vit.patch_embed(batch.images_BCHW))
    x = backbone.vit.norm(backbone.vit.blocks(backbone.vit.norm_pre(torch.cat([tokens, x], 1))))
    expected = x[:, : 5 * 5].mean(1)
    torch.testing.assert_close(model.features(backbone, batch, index), expected, atol=1e-5, rtol=1e-4)


def test_batch_composition_never_changes_a_prediction(backbone: Backbone) -> None:
    model, batch = make(backbone), plain_batch(backbone, 12)
    shake(model)
    together = model.logits(backbone, batch)
    for rows in ([0], [5], [11, 3, 7], list(reversed(range(12)))):
        alone = model.logits(backbone, batch.rows(rows))
        torch.testing.assert_close(alone, together[rows], atol=1e-4, rtol=1e-4)
        assert torch.equal(alone.argmax(1), together[rows].argmax(1))


def test_vote_does_depend_on_neighbours(backbone: Backbone) -> None:
    """The compatibility mode is labelled for this reason; if it did not, the test above would prove nothing."""
    model = make(backbone, vote="batch", vote_size=4, top_k=1, pool_size=4)
    shake(model)
    queries = model.pool.keys_MD.detach()[[0, 1, 1, 2]]
    assert model.select(queries)[0].flatten().tolist() == [1, 1, 1, 1]
    assert model.select(queries[:1])[0].flatten().tolist() == [0]
    assert model.together == 4


def test_vote_group_is_independent_of_the_batch_size(backbone: Backbone) -> None:
    model = make(backbone, vote="batch", vote_size=4)
    shake(model)
    queries = torch.randn(16, backbone.width)
    whole = model.select(queries)[0]
    parts = torch.cat([model.select(part)[0] for part in queries.split(8)])
    assert torch.equal(whole, parts)


def test_selections_are_counted(backbone: Backbone) -> None:
    model = make(backbone, top_k=2)
    model.select(torch.randn(7, backbone.width))
    counts = model.stats.take()["prompts"]
    assert isinstance(counts, list)
    assert len(counts) == 10
    assert sum(counts) == 14
    assert not model.stats.take()


def test_learning_rate_of_the_release() -> None:
    assert effective_lr(TrainConfig(lr=0.03, lr_batch=256, batch_size=128)) == pytest.approx(0.015)
    assert effective_lr(TrainConfig(lr=0.03, lr_batch=256, batch_size=16)) == pytest.approx(0.001875)
    assert effective_lr(TrainConfig(lr=0.03, batch_size=16)) == 0.03


def test_more_prompts_selected_than_there_are_is_refused() -> None:
    with pytest.raises(ValidationError, match="top_k=5 is more than pool_size=3"):
        L2POptions(pool_size=3)


def test_equation_4(backbone: Backbone) -> None:
    """Distance times frequency in training, ties by distance; plain matching at test."""
    model = make(backbone, pool_size=4, top_k=2, diversify="frequency")
    shake(model)
    keys = model.pool.keys_MD.detach()
    query = (keys[0] / keys[0].norm() + 0.5 * keys[1] / keys[1].norm())[None]
    order = model.pool.match(query)[0].argsort(descending=True).tolist()
    assert model.select(query)[0].tolist() == [order[:2]]  # the first task: all h are equal
    begin_task(model, 1, grow=False)
    chosen = model.select(query)[0].tolist()[0]
    assert chosen == order[2:]  # h = 0 for the others, nearest first
    assert model.frequency_M.sum().item() == pytest.approx(1.0)
    begin_task(model, 2, grow=False)  # all four were chosen once
    distance = (1 - model.pool.match(query)[0]) * torch.tensor([0.25] * 4)
    assert model.select(query)[0].tolist() == [distance.argsort().tolist()[:2]]
    model.eval()
    before = model.chosen_M.value.clone()
    assert model.select(query)[0].tolist() == [order[:2]]
    assert torch.equal(model.chosen_M.value, before)
    assert {"chosen_M.value", "frequency_M"} <= set(model.state_dict())
    assert not {"chosen_M.value", "frequency_M"} & set(make(backbone).state_dict())


def test_slots_are_forced_in_training_and_start_from_the_task_before(backbone: Backbone) -> None:
    model, batch = make(backbone, pool_size=5, top_k=2, diversify="slots"), plain_batch(backbone)
    shake(model)
    prompts = model.pool.prompts_MLD.detach().clone()
    assert begin_task(model, 0, grow=False) == []
    assert torch.equal(model.pool.prompts_MLD, prompts)
    assert begin_task(model, 1, grow=False) == []
    assert torch.equal(model.pool.prompts_MLD[2:4], prompts[:2])
    model.loss(backbone, batch).backward()
    assert model.pool.prompts_MLD.grad is not None
    assert {m for m in range(5) if model.pool.prompts_MLD.grad[m].any()} == {2, 3}
    assert model.pool.keys_MD.grad is not None
    assert {m for m in range(5) if model.pool.keys_MD.grad[m].any()} == {2, 3}
    free = model.eval().select(batch.query_BD)[0]
    assert torch.equal(free, top_n(model.pool.match(batch.query_BD), 2))
    model.train()
    (warning,) = begin_task(model, 2, grow=False)
    assert "slots 4 to 5 are beyond the pool of 5" in warning
    assert torch.equal(model.select(batch.query_BD)[0], free)
    copyless = make(backbone, pool_size=4, top_k=2, diversify="slots", copy_slots=False)
    before = copyless.pool.prompts_MLD.detach().clone()
    begin_task(copyless, 1, grow=False)
    assert torch.equal(copyless.pool.prompts_MLD, before)


def test_mean_match_of_the_selected_keys(backbone: Backbone) -> None:
    model = make(backbone, top_k=3)
    queries = torch.randn(7, backbone.width)
    index, similarity = model.select(queries)
    assert model.stats.take()["cosine"] == pytest.approx(similarity.gather(1, index).mean().item(), abs=1e-6)
    assert not model.stats.tensors()


def test_prompts_learn_at_a_rate_of_their_own_or_not_at_all(backbone: Backbone) -> None:
    model = make(backbone, prompt_lr=0.5)
    rates = {id(p): group["lr"] for group in model.parameter_groups(0.1) for p in group["params"]}
    assert rates.pop(id(model.pool.prompts_MLD)) == 0.5
    assert rates == {id(p): 0.1 for p in (model.pool.keys_MD, *model.head.parameters())}
    frozen = make(backbone, train_prompts=False)
    trained = [p for group in frozen.parameter_groups(0.1) for p in group["params"]]
    assert all(p is not frozen.pool.prompts_MLD for p in trained)


@pytest.mark.parametrize("diversify", ["frequency", "slots"])
def test_a_stream_without_boundaries_has_no_earlier_tasks(backbone: Backbone, diversify: str) -> None:
    stream = cast(TaskView, PastTask(0, 0, 2, 2, boundaries=False))
    make(backbone).grow(stream)
    with pytest.raises(UserError, match="needs to know where tasks end"):
        make(backbone, diversify=diversify).grow(stream)
