"""Acceptance tests of S-Prompts, on a small timm ViT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers import make_config
from plain_method import PlainTask, begin_task, make_method, plain_batch, shake
from torch import Tensor

from promptcl.backbone import Backbone, Tokens
from promptcl.data import ImageSet
from promptcl.layers import GrowingLinear
from promptcl.learner import Learner
from promptcl.methods._base import TaskView
from promptcl.methods.sprompts import Model


def make(backbone: Any, classes: int = 6, domains: int = 1, **options: Any) -> Model:
    """A method with so many domains, which all know all classes."""
    model = make_method(Model, backbone, classes=classes, head_init="uniform", **options)
    for task in range(1, domains):
        begin_task(model, task)
    model.known_SK.fill_(True)
    return model


def head(model: Model, number: int) -> GrowingLinear:
    return cast(GrowingLinear, model.heads[number])


def test_numbers_of_a_domain_at_the_width_of_vit_b() -> None:
    model = make(SimpleNamespace(width=768, depth=12), classes=50)
    assert model.prompt_1LD.numel() == 7_680
    assert model.centres_SCD.numel() == 3_840
    assert sum(p.numel() for p in head(model, 0).parameters()) == 38_450
    model.grow(cast(TaskView, PlainTask(1)))
    values = [value for value in model.state_dict().values() if value.dtype != torch.bool]
    assert sum(value.numel() for value in values) == 2 * (7_680 + 3_840 + 38_450)
    trained = sum(p.numel() for group in model.parameter_groups(0.1) for p in group["params"])
    assert trained == 7_680 + 38_450


@pytest.mark.parametrize("length", [0, 3])
def test_one_domain_is_a_shallow_prompt_under_a_linear_head(backbone: Backbone, length: int) -> None:
    model, batch = make(backbone, length=length), plain_batch(backbone)
    features = backbone(batch.images_BCHW, [Tokens(0, model.prompt_1LD)]).pooled_BD
    assert torch.equal(model.logits(backbone, batch), head(model, 0)(features))
    assert torch.equal(features, batch.query_BD) == (length == 0)


def test_the_nearest_centre_names_the_domain(backbone: Backbone) -> None:
    model, width = make(backbone, domains=2, centres=2), backbone.width
    one = torch.eye(width)[:1]
    model.centres_SCD.copy_(torch.stack([one, -one]).expand(2, 2, width))
    noise = 0.1 * torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    queries = 50 * torch.cat([one + noise, -one + noise])
    assert model.choose(queries).tolist() == [0] * 20 + [1] * 20
    assert model.stats.take()["prompts"] == [20, 20]


@pytest.mark.parametrize(("distance", "wanted"), [("l1", 0), ("l2", 1)])
def test_the_two_distances_choose_otherwise(backbone: Backbone, distance: str, wanted: int) -> None:
    """From a query at the origin, (.8, 0) is nearer by l1 and (.5, .5) by l2."""
    model = make(backbone, domains=2, centres=1, distance=distance)
    model.centres_SCD.zero_()
    model.centres_SCD[0, 0, 0], model.centres_SCD[1, 0, 0], model.centres_SCD[1, 0, 1] = 0.8, 0.5, 0.5
    assert model.choose(torch.zeros(1, backbone.width)).item() == wanted


def test_an_image_meets_prompt_and_head_of_its_domain(backbone: Backbone) -> None:
    model, batch = make(backbone, domains=3), plain_batch(backbone, 12)
    shake(model)
    domains = torch.arange(12) % 3
    model.centres_SCD.copy_(torch.nn.functional.normalize(batch.query_BD[:3])[:, None].expand(-1, 5, -1))
    batch.query_BD = batch.query_BD[domains]
    whole, prompts = model.logits(backbone, batch), torch.cat([model.past_prompts_SLD, model.prompt_1LD])
    for row in range(12):
        domain = int(domains[row])
        own = head(model, domain)(model.features(backbone, batch.rows([row]), prompts[[domain]]))
        torch.testing.assert_close(whole[[row]], own, atol=1e-4, rtol=1e-4)
    for rows in ([5, 11], [11, 3, 7], [2, 2, 2]):
        torch.testing.assert_close(model.logits(backbone, batch.rows(rows)), whole[rows], atol=1e-4, rtol=1e-4)


def test_gradient_reaches_prompt_and_head_of_the_domain(backbone: Backbone) -> None:
    model = make(backbone, domains=2)
    model.loss(backbone, plain_batch(backbone)).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"prompt_1LD", "heads.1.weight_KD", "heads.1.bias_K"}
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_a_task_leaves_the_past_as_it_was_and_reads_queries_after_training(
    backbone: Backbone, digits: list[ImageSet], scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = digits[:2] if scenario == "class" else [digits[0], digits[0].select(range(3, 12))]
    config = make_config(scenario=scenario, method={"name": "sprompts"}, data={"augment": "none"})
    learner, asked = Learner(config, backbone), list[int]()
    model, query = cast(Model, learner.method), Backbone.query

    def ask(self: Backbone, images: Tensor) -> Tensor:
        asked.append(len(images))
        return query(self, images)

    monkeypatch.setattr(Backbone, "query", ask)
    past: dict[str, Tensor] = {}
    for number, images in enumerate(tasks):
        learner.learn(images)
        assert sum(asked) == len(images)  # once each, though it was trained on
        asked.clear()
        now = {name: value.detach().clone() for name, value in model.named_buffers()}
        if number:
            assert torch.equal(now["past_prompts_SLD"], past["prompt_1LD"])
            assert torch.equal(now["centres_SCD"][:1], past["centres_SCD"])
            for name in ("weight_KD", "bias_K"):
                assert torch.equal(model.state_dict()[f"heads.0.{name}"], past[f"heads.0.{name}"])
        past = {name: value.clone() for name, value in model.state_dict().items()}
    assert (model.centres_SCD.norm(dim=2) <= 1 + 1e-6).all()
    wanted = [[True] * 2 + [False] * 2, [False] * 2 + [True] * 2] if scenario == "class" else [[True] * 2] * 2
    assert model.known_SK.tolist() == wanted
    logits = learner.logits(tasks[0], learner.labels(tasks[0]))
    assert logits.isfinite().all()
    unknown = (logits.max(1, keepdim=True).values - logits > 5e3).sum(1)
    assert set(unknown.tolist()) == ({2} if scenario == "class" else {0})
