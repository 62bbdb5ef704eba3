"""Acceptance tests of OS-Prompt and OS-Prompt++, on a small timm ViT."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers import make_config
from plain_method import PlainTask, begin_task, make_method, plain_batch, shake
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.learner import Learner
from promptcl.methods import coda
from promptcl.methods._base import TaskView
from promptcl.methods.osprompt import Model

NEW = {"components.present.prompt", "components.present.key"}


def make(backbone: Any, **options: Any) -> Model:
    return make_method(Model, backbone, **{"classes": 6, "components": 3, "head_init": "uniform", **options})


def moved(model: Model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def queries_of(model: Model, backbone: Backbone, batch: Any) -> dict[int, Tensor]:
    queries: dict[int, Tensor] = {}
    model.features(backbone, batch, queries)
    return queries


def test_number_of_parameters_at_the_width_of_vit_b() -> None:
    model = make_method(Model, SimpleNamespace(width=768, depth=12, reads_class_token=True), classes=0)
    assert sum(p.numel() for p in model.parameters()) == 345_600
    model.grow(cast(TaskView, PlainTask(1, 100)))
    assert sum(p.numel() for p in model.parameters()) == 345_600 + 769 * 100
    assert sum(value.numel() for value in model.state_dict().values()) == 2 * 345_600 + 769 * 100


def test_the_query_is_constant_at_block_0_and_then_the_image_s(backbone: Backbone) -> None:
    model, batch = make(backbone), plain_batch(backbone)
    queries = queries_of(model, backbone, batch)
    assert sorted(queries) == [0, 1, 2, 3, 4]
    constant = backbone.vit.cls_token[0, 0] + backbone.class_position_D
    torch.testing.assert_close(queries[0], constant.expand(4, -1))
    keys = [model.components.prefix(number, queries[number]).keys_BLD for number in (0, 1)]
    torch.testing.assert_close(keys[0], keys[0][:1].expand_as(keys[0]))
    assert (keys[1][0] - keys[1][1]).abs().max() > 1e-4


def test_at_block_0_it_is_coda_with_a_constant_query(backbone: Backbone) -> None:
    model, batch = make(backbone, layers=(0,)), plain_batch(backbone)
    other = make_method(coda.Model, backbone, components=3, layers=(0,))
    with torch.no_grad():
        for name in ("prompt", "key"):
            other.components.present[name].copy_(model.components.present[name])
        other.components.present["attention"].fill_(1)
    constant = (backbone.vit.cls_token[0, 0] + backbone.class_position_D).expand(4, -1)
    wanted = other.features(backbone, replace(batch, query_BD=constant))
    torch.testing.assert_close(model.features(backbone, batch), wanted)


@pytest.mark.parametrize("qr", [0.0, 0.1])
def test_one_pass_an_image_and_no_query_but_in_training_of_the_second_form(
    backbone: Backbone, digits: list[ImageSet], monkeypatch: pytest.MonkeyPatch, qr: float
) -> None:
    asked, calls, query = list[int](), list[int](), Backbone.query

    def ask(self: Backbone, images: Tensor) -> Tensor:
        asked.append(len(images))
        return query(self, images)

    learner = Learner(make_config(method={"name": "osprompt", "components": 3, "qr": qr}), backbone)
    monkeypatch.setattr(Backbone, "query", ask)
    learner.learn(digits[0])
    assert bool(asked) == bool(qr)
    asked.clear()
    hook = backbone.vit.blocks[0].norm1.register_forward_hook(lambda module, x, y: calls.append(len(y)))
    learner.predict(digits[0])
    hook.remove()
    assert asked == []
    assert sum(calls) == len(digits[0])


def test_the_relation_is_nothing_along_the_plain_query_and_reaches_keys_and_earlier_prompts(backbone: Backbone) -> None:
    model, batch = make(backbone, qr=1.0), plain_batch(backbone)
    parallel = {number: (number + 1) * batch.query_BD for number in range(5)}
    assert model.relation(parallel, batch.query_BD).item() == pytest.approx(0, abs=1e-12)
    with torch.no_grad():  # two keys, by hand
        model.components.present["key"] = torch.nn.Parameter(torch.eye(backbone.width)[:2].expand(5, -1, -1).clone())
    along, across = torch.eye(backbone.width)[:1], torch.eye(backbone.width)[1:2]
    weight = torch.tensor([1.0, 0.0]).softmax(0)
    by_hand = 2 * (weight[0] - weight[1]).square()
    torch.testing.assert_close(model.relation({0: along}, across), by_hand)
    model = make(backbone)
    plain = batch.query_BD.clone().requires_grad_()
    model.relation(queries_of(model, backbone, batch), plain.detach()).backward()
    prompts = model.components.present["prompt"].grad
    assert moved(model) == NEW
    assert prompts is not None
    assert prompts.abs().sum((1, 2)).bool().tolist() == [True] * 4 + [False]  # the last has no block behind it
    detached = make(backbone, detach_query=True)
    detached.relation(queries_of(detached, backbone, batch), plain.detach()).backward()
    assert moved(detached) == {"components.present.key"}


def test_gradient_reaches_the_new_components_and_the_head_rows_of_the_task(backbone: Backbone) -> None:
    model = make(backbone, classes=2, qr=0.1)
    begin_task(model, 1, 2)
    model.loss(backbone, plain_batch(backbone, 4, 4).allowing(2, 3, of=4).rows([2, 3])).backward()
    assert moved(model) == NEW | {"head.weight_KD", "head.bias_K"}
    assert model.head.weight_KD.grad is not None
    assert not model.head.weight_KD.grad[:2].any()
    assert all(p.grad is None for p in backbone.parameters())


def test_the_first_step_under_a_head_of_zeros_moves_it_alone(backbone: Backbone) -> None:
    model = make(backbone, head_init="zero")
    model.loss(backbone, plain_batch(backbone)).backward()
    assert moved(model) == {"head.weight_KD", "head.bias_K"}


def test_neighbours_never_change_a_prediction(backbone: Backbone) -> None:
    model, batch = make(backbone), plain_batch(backbone, 12)
    shake(model)
    whole = model.logits(backbone, batch)
    for rows in ([0], [5, 11], [11, 3, 7], list(reversed(range(12))), [2, 2, 2]):
        torch.testing.assert_close(model.logits(backbone, batch.rows(rows)), whole[rows], atol=1e-4, rtol=1e-4)


def test_a_vit_without_class_token_is_refused() -> None:
    without = SimpleNamespace(width=8, depth=12, name="vit_of_patches", reads_class_token=False)
    with pytest.raises(UserError, match="works on the class token, which vit_of_patches does not read"):
        make_method(Model, without)
