"""Acceptance tests of VQ-Prompt, on a small timm ViT."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from plain_method import PlainTask, begin_task, make_method, plain_batch, shake
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.methods._base import TaskView
from promptcl.methods.vq import Choice, Model


def make(backbone: Any, classes: int = 6, **options: Any) -> Model:
    return make_method(Model, backbone, classes, head_init="uniform", **options)


def test_number_of_parameters_at_the_width_of_vit_b() -> None:
    model = make(SimpleNamespace(width=768, depth=12), classes=0)
    assert sum(value.numel() for value in model.state_dict().values()) == 345_600
    model.grow(cast(TaskView, PlainTask(1, 100)))
    groups = model.parameter_groups(0.1)
    assert sum(p.numel() for group in groups for p in group["params"]) == 345_600 + 769 * 100
    split = make(SimpleNamespace(width=768, depth=12), classes=0, prompt_lr=0.5).parameter_groups(0.1)
    assert [(group["lr"], len(group["params"])) for group in split] == [(0.1, 2), (0.5, 2)]


def test_length_0_is_a_linear_head(backbone: Backbone) -> None:
    model, batch = make(backbone, length=0), plain_batch(backbone)
    assert torch.equal(model.logits(backbone, batch), model.head(batch.query_BD))
    assert model.loss(backbone, batch).isfinite()


def test_the_mixture_is_snapped_to_the_nearest_prompt(backbone: Backbone) -> None:
    model, query = make(backbone), plain_batch(backbone, 12).query_BD
    for number, choice in enumerate(model.choose(query)):
        prompts = model.prompts_RMX[number].detach()
        alpha = (query @ F.normalize(model.keys_RMD[number]).T).softmax(1).detach()  # the query keeps its length
        torch.testing.assert_close(choice.mixture_BX.detach(), alpha @ prompts)
        gaps = (alpha @ prompts)[:, None] - prompts
        assert choice.index_B.tolist() == gaps.square().sum(2).argmin(1).tolist()
        assert torch.equal(choice.prompt_BX, prompts[choice.index_B])
    for choice, other in zip(model.choose(query), model.choose(3 * query), strict=True):
        assert not torch.allclose(other.mixture_BX, choice.mixture_BX)


def test_cold_and_tied(backbone: Backbone) -> None:
    query = plain_batch(backbone).query_BD
    cold = make(backbone, temperature=1e-4)
    best = (query @ F.normalize(cold.keys_RMD[2]).T).argmax(1)
    torch.testing.assert_close(cold.choose(query)[2].mixture_BX, cold.prompts_RMX[2][best])
    tied = make(backbone)
    with torch.no_grad():
        tied.prompts_RMX.copy_(tied.prompts_RMX[:, :1].clone().expand_as(tied.prompts_RMX))
    assert tied.choose(query)[0].index_B.tolist() == [0] * 4


def test_the_value_is_the_prompt_and_the_gradient_the_mixture_s(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, used = make(backbone, commitment=0, codebook=0, layers=(2,)), plain_batch(backbone), list[Tensor]()
    forward = Backbone.forward

    def watch(self: Backbone, images: Tensor, inserts: Any) -> Any:
        rows = torch.stack([inserts[0].keys_BLD, inserts[0].values_BLD], 1)
        rows.retain_grad()
        used.append(rows)
        inserts[0] = replace(inserts[0], keys_BLD=rows[:, 0], values_BLD=rows[:, 1])
        return forward(self, images, inserts)

    monkeypatch.setattr(Backbone, "forward", watch)
    model.loss(backbone, batch).backward()
    (choice,) = model.choose(batch.query_BD)
    torch.testing.assert_close(used[0].flatten(1), choice.prompt_BX, atol=1e-6, rtol=0)
    alpha = (batch.query_BD @ F.normalize(model.keys_RMD[0]).T).softmax(1).detach()
    assert used[0].grad is not None
    assert model.keys_RMD.grad is not None
    torch.testing.assert_close(model.prompts_RMX.grad, (alpha.T @ used[0].grad.flatten(1))[None], atol=1e-7, rtol=1e-4)
    assert model.keys_RMD.grad.any()


@pytest.mark.parametrize(("options", "wanted"), [({"commitment": 2.0}, 4.0), ({"codebook": 3.0}, 6.0)])
def test_the_two_terms_by_hand(backbone: Backbone, options: dict[str, Any], wanted: float) -> None:
    """With a mixture and a prompt whose mean square difference is 1 in each of two blocks."""
    model, batch = (
        make(backbone, **{"commitment": 0.0, "codebook": 0.0, **options}, layers=(0, 1)),
        plain_batch(backbone),
    )
    mixture, prompt = (torch.full((4, 8 * backbone.width), value, requires_grad=True) for value in (1.0, 2.0))
    choices = [Choice(mixture, prompt, torch.zeros(4, dtype=torch.long))] * 2
    without = make(backbone, commitment=0, codebook=0, layers=(0, 1))
    for one in (model, without):
        one.choose = lambda query_BD: choices  # type: ignore[method-assign]
    term = model.loss(backbone, batch) - without.loss(backbone, batch)
    assert term.item() == pytest.approx(wanted, abs=1e-4)
    (term - 0 * mixture.sum() - 0 * prompt.sum()).backward()
    moved = {"mixture": mixture.grad, "prompt": prompt.grad}
    gradient = {name: 0.0 if grad is None else grad.abs().max().item() for name, grad in moved.items()}
    assert (gradient["prompt"] > 1e-6) == ("codebook" in options)
    assert (gradient["mixture"] > 1e-6) == ("commitment" in options)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_first_step_under_a_head_of_zeros(backbone: Backbone, weight: float) -> None:
    """Only the head moves, and by its own two terms what is chosen from."""
    model = make_method(Model, backbone, classes=3, head_init="zero", commitment=weight, codebook=weight)
    model.loss(backbone, plain_batch(backbone)).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"head.weight_KD", "head.bias_K"} | ({"prompts_RMX", "keys_RMD"} if weight else set())


def test_gradient_reaches_pool_keys_and_the_head_rows_of_the_task(backbone: Backbone) -> None:
    model = make(backbone, classes=2)
    begin_task(model, 1, 2)
    shake(model)
    model.loss(backbone, plain_batch(backbone, 6, 4).allowing(2, 3, of=4).rows([2, 3])).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.head.weight_KD.grad is not None
    assert not model.head.weight_KD.grad[:2].any()
    assert all(p.grad is None for p in backbone.parameters())


def test_neighbours_never_change_a_prediction(backbone: Backbone) -> None:
    model, batch = make(backbone), plain_batch(backbone, 12)
    shake(model)
    whole = model.logits(backbone, batch)
    assert len(set(model.choose(batch.query_BD)[0].index_B.tolist())) > 1
    for rows in ([0], [5, 11], [11, 3, 7], list(reversed(range(12))), [2, 2, 2]):
        torch.testing.assert_close(model.logits(backbone, batch.rows(rows)), whole[rows], atol=1e-4, rtol=1e-4)
