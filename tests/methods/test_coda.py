"""Acceptance tests of CODA-Prompt, on a small timm ViT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from helpers import make_config
from plain_method import PlainTask, begin_task, make_method, plain_batch, shake
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.learner import Learner
from promptcl.methods._base import TaskView
from promptcl.methods.coda import Model

HEAD = {"head.weight_KD", "head.bias_K"}
NEW = {f"components.present.{name}" for name in ("prompt", "key", "attention")}


def after_two_tasks(backbone: Backbone, **options: Any) -> Model:
    model = make_method(Model, backbone, classes=2, components=3, **options)
    shake(model)
    begin_task(model, 1, 2)
    shake(model, 3)
    return model


def moved(model: Model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_number_of_parameters_at_the_width_of_vit_b() -> None:
    model = make_method(Model, SimpleNamespace(width=768, depth=12), classes=10)
    model.grow(cast(TaskView, PlainTask(1, 10)))
    head = 769 * 20
    assert sum(value.numel() for value in model.state_dict().values()) == 2 * 384_000 + head
    assert sum(p.numel() for group in model.parameter_groups(0.1) for p in group["params"]) == 384_000 + head


def test_length_0_is_a_linear_head(backbone: Backbone) -> None:
    model, batch = make_method(Model, backbone, length=0, head_init="uniform"), plain_batch(backbone)
    assert torch.equal(model.logits(backbone, batch), model.head(batch.query_BD))


def test_gradient_reaches_the_new_components_and_the_head_rows_of_the_task(backbone: Backbone) -> None:
    model = after_two_tasks(backbone)
    model.loss(backbone, plain_batch(backbone, 4, 4).allowing(2, 3, of=4).rows([2, 3])).backward()
    assert moved(model) == NEW | HEAD
    assert model.head.weight_KD.grad is not None
    assert not model.head.weight_KD.grad[:2].any()
    assert all(p.grad is None for p in backbone.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_first_step_with_a_head_of_zeros_moves_the_head_alone(backbone: Backbone) -> None:
    for init, wanted in (("zero", HEAD), ("uniform", NEW | HEAD)):
        model = make_method(Model, backbone, head_init=init)
        model.loss(backbone, plain_batch(backbone)).backward()
        assert moved(model) == wanted


def test_old_components_still_take_part(backbone: Backbone) -> None:
    model, batch = after_two_tasks(backbone), plain_batch(backbone)
    before = model.logits(backbone, batch)
    model.components.get_buffer("past_prompt").zero_()
    assert (model.logits(backbone, batch) - before).abs().max() > 1e-3


def test_ortho_is_nothing_where_components_are_orthonormal(backbone: Backbone) -> None:
    batch = plain_batch(backbone)
    for shaken in (False, True):
        without, model = (make_method(Model, backbone, components=3, ortho=mu) for mu in (0.0, 2.0))
        if shaken:
            shake(model)
            shake(without)
        term = model.loss(backbone, batch) - without.loss(backbone, batch)
        assert (term.abs() > 1e-2) == shaken


def test_neighbours_never_change_a_prediction(backbone: Backbone) -> None:
    model, batch = after_two_tasks(backbone), plain_batch(backbone, 12)
    whole = model.logits(backbone, batch)
    for rows in ([0], [5, 11], [11, 3, 7], list(reversed(range(12))), [2, 2, 2]):
        torch.testing.assert_close(model.logits(backbone, batch.rows(rows)), whole[rows], atol=1e-4, rtol=1e-4)


def test_later_tasks_leave_the_past_as_it_was(backbone: Backbone, digits: list[ImageSet]) -> None:
    method = {"name": "coda", "components": 3, "max_tasks": 2, "prompt_lr": 0.02}
    made = Learner(make_config(method=method), backbone)
    model = cast(Model, made.method)
    vit = {name: value.clone() for name, value in backbone.state_dict().items()}
    past: list[Tensor] = []
    for task, images in enumerate(digits[:3]):
        head = model.head.weight_KD.detach().clone()
        said = made.learn(images).warnings
        assert said == (["task 3 adds no components any more and trains the head alone"] if task == 2 else [])
        assert torch.equal(model.head.weight_KD[: len(head)], head)
        now = model.components.all("prompt").detach().clone()
        assert all(torch.equal(now[:, : rows.shape[1]], rows) for rows in past)
        assert now.shape[1] == (3, 6, 6)[task]
        past.append(now)
    assert all(torch.equal(value, vit[name]) for name, value in backbone.state_dict().items())
