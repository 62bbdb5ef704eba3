"""Acceptance tests of OnePrompt and OVOR, on a small timm ViT."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
from helpers import make_config
from plain_method import PlainTask, begin_task, make_method, plain_batch, shake
from torch import Tensor, nn

from promptcl.backbone import Backbone, Prefix
from promptcl.data import ImageSet
from promptcl.layers.outliers import draw_outliers, energy
from promptcl.learner import Learner
from promptcl.methods._base import TaskView
from promptcl.methods.oneprompt import Model
from promptcl.training import Silent

LAYOUT = ((0, 5), (1, 5), (2, 20), (3, 20), (4, 20))


def make(backbone: Backbone, **options: Any) -> Model:
    return make_method(Model, backbone, **options)


def learner(backbone: Backbone, train: dict[str, Any] | None = None, **options: Any) -> Learner:
    return Learner(make_config(method={"name": "oneprompt", **options}, train=train or {}), backbone)


def method_of(made: Learner) -> Model:
    assert isinstance(made.method, Model)
    return made.method


def copies(tensors: nn.ParameterList) -> list[Tensor]:
    return [p.detach().clone() for p in tensors]


@pytest.fixture
def no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a query fails."""

    def refuse(self: Backbone, images_BCHW: Tensor, feature: str = "class") -> Tensor:
        raise AssertionError("a query was computed")

    monkeypatch.setattr(Backbone, "query", refuse)


def test_number_of_parameters_at_the_width_of_vit_b() -> None:
    model = make_method(Model, SimpleNamespace(width=768, depth=12), classes=0)
    assert sum(p.numel() for p in model.prefixes_2LD) == 107_520
    for task in range(10):
        model.grow(cast(TaskView, PlainTask(task, 10)))
    trained = sum(p.numel() for group in model.parameter_groups(0.1) for p in group["params"])
    assert trained == 107_520 + 769 * 100
    assert sum(value.numel() for value in model.state_dict().values()) == trained


def test_length_0_is_the_plain_vit_and_zeros_are_not(backbone: Backbone) -> None:
    batch = plain_batch(backbone)
    empty = make(backbone, layout=[(layer, 0) for layer in range(6)])
    assert torch.equal(empty.logits(backbone, batch), empty.head(batch.query_BD))
    model = make(backbone)
    with torch.no_grad():
        for p in model.prefixes_2LD:
            p.zero_()
    assert (model.features(backbone, batch) - batch.query_BD).abs().max() > 1e-3


@pytest.mark.parametrize("layer", range(6))
def test_prefixes_reach_the_block_that_the_layout_names(backbone: Backbone, layer: int) -> None:
    model, entered = make(backbone, layout=[(layer, 3)]), []
    hooks = [
        block.norm1.register_forward_hook(lambda _, x, y, at=at: entered.append((at, x[0].clone())))
        for at, block in enumerate(backbone.vit.blocks)
    ]
    batch = plain_batch(backbone)
    backbone(batch.images_BCHW)
    plain, entered = dict(entered), []
    features = model.features(backbone, batch)
    for hook in hooks:
        hook.remove()
    assert {at for at, x in entered if not torch.equal(x, plain[at])} == set(range(layer + 1, 6))
    assert not torch.equal(features, batch.query_BD)


def test_rows_of_keys_and_values_belong_together(backbone: Backbone) -> None:
    model, batch, order = make(backbone), plain_batch(backbone), [3, 1, 4, 0, 2]
    shake(model)
    before = model.features(backbone, batch)
    with torch.no_grad():
        model.prefixes_2LD[0].copy_(model.prefixes_2LD[0][:, order])
    torch.testing.assert_close(model.features(backbone, batch), before, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        model.prefixes_2LD[0][0] = model.prefixes_2LD[0][0, order]
    assert (model.features(backbone, batch) - before).abs().max() > 1e-3


def test_neighbours_never_change_a_prediction(backbone: Backbone) -> None:
    model, batch = make(backbone), plain_batch(backbone, 12)
    whole = model.logits(backbone, batch)
    for rows in ([0], [5, 11], [11, 3, 7], list(reversed(range(12))), [2, 2, 2]):
        alone = model.logits(backbone, batch.rows(rows))
        torch.testing.assert_close(alone, whole[rows], atol=1e-4, rtol=1e-4)
        assert torch.equal(alone.argmax(1), whole[rows].argmax(1))


@pytest.mark.usefixtures("no_query")
def test_no_query_is_ever_computed(backbone: Backbone, digits: list[ImageSet]) -> None:
    made = learner(backbone, outliers="boundary")
    for images in digits[:2]:
        made.learn(images)
    assert len(made.predict(digits[0])) == len(digits[0])
    with pytest.raises(AssertionError, match="a query was computed"):
        made.batches.queries.whole(digits[0])


def test_gradient_reaches_all_prefixes_and_the_head_rows_of_the_task(backbone: Backbone) -> None:
    model = make(backbone, classes=2)
    begin_task(model, 1, 2)
    model.loss(backbone, plain_batch(backbone, 6, 4).allowing(2, 3, of=4).rows([2, 3])).backward()
    assert all(p.grad is not None and p.grad.abs().sum((1, 2)).all() for p in model.prefixes_2LD)
    for p in model.head.parameters():
        assert p.grad is not None
        assert not p.grad[:2].any()
        assert p.grad[2:].any()
    assert all(p.grad is None for p in backbone.parameters())


def test_first_step_with_a_head_of_zeros_moves_no_prefix(backbone: Backbone) -> None:
    for init in ("zero", "uniform"):
        model = make(backbone, head_init=init)
        model.loss(backbone, plain_batch(backbone)).backward()
        moved = [p.grad is not None and bool(p.grad.any()) for p in model.prefixes_2LD]
        assert moved == [init == "uniform"] * 5


def test_a_task_leaves_the_vit_and_other_head_rows_as_they_were(backbone: Backbone, digits: list[ImageSet]) -> None:
    made = learner(backbone)
    model, vit = method_of(made), {name: value.clone() for name, value in backbone.state_dict().items()}
    made.learn(digits[0])
    head, prefixes = model.head.weight_KD.detach().clone(), copies(model.prefixes_2LD)
    made.learn(digits[1])
    assert torch.equal(model.head.weight_KD[:2], head)
    assert not any(torch.equal(old, new) for old, new in zip(prefixes, model.prefixes_2LD, strict=True))
    assert all(torch.equal(value, vit[name]) for name, value in backbone.state_dict().items())


def test_more_tasks_change_no_logit_where_nothing_is_learned(backbone: Backbone, digits: list[ImageSet]) -> None:
    made = learner(backbone, {"lr": 1e-30})
    made.learn(digits[0])
    labels, prefixes = made.labels(digits[0]), copies(method_of(made).prefixes_2LD)
    before = made.logits(digits[0], labels)
    for images in digits[1:3]:
        made.learn(images)
    after = made.logits(digits[0], labels)
    assert after.shape == (len(digits[0]), 6)
    torch.testing.assert_close(after[:, :2], before, atol=1e-6, rtol=1e-6)  # a wider head rounds otherwise
    assert all(torch.equal(old, new) for old, new in zip(prefixes, method_of(made).prefixes_2LD, strict=True))


def test_tasks_of_one_class_of_two_images_and_of_known_classes(backbone: Backbone, digits: list[ImageSet]) -> None:
    made = learner(backbone, outliers="boundary")
    for images in (digits[0].of_classes("0"), digits[1].select([0, 1]), digits[0].of_classes("0").select([0])):
        made.learn(images)
    assert made.classes == ["0", "2", "3"]
    assert made.logits(digits[0].of_classes("0"), torch.zeros(8)).isfinite().all()


@pytest.mark.parametrize("kind", ["boundary", "origin"])
def test_outliers_move_the_head_alone(backbone: Backbone, digits: list[ImageSet], kind: str) -> None:
    made = learner(backbone, outliers=kind, outlier_epochs=2)
    model, seen = method_of(made), []

    class Watch(Silent):
        def stage(self, number: int, steps: int) -> None:
            seen.append((steps, model.head.weight_KD.detach().clone(), copies(model.prefixes_2LD)))

    made.learn(digits[0], progress=Watch())
    (first, *_), (second, head, prefixes) = seen
    assert (first, second) == (2, 4)  # 16 images in batches of 8, once and twice
    assert all(torch.equal(old, new) for old, new in zip(prefixes, model.prefixes_2LD, strict=True))
    assert not torch.equal(model.head.weight_KD, head)


def test_without_outliers_there_is_one_stage(backbone: Backbone) -> None:
    task = cast(TaskView, PlainTask(0, 2))
    assert len(list(make(backbone).learn(backbone, task))) == 1


def test_energies_by_hand(backbone: Backbone) -> None:
    batch = plain_batch(backbone, 4, 2)
    torch.testing.assert_close(energy(torch.zeros(4, 2), None), torch.full((4,), -math.log(2)))
    # A class that the task does not have is no part of the energy.
    masked = energy(torch.tensor([[0.0, 0.0, 9.0]] * 4), batch.allowing(0, 1, of=3).allowed_BK)
    torch.testing.assert_close(masked, torch.full((4,), -math.log(2)))
    model = make(backbone, classes=2, head_init="zero", outliers="boundary", outlier_weight=0.1)
    model._outliers_OD, bias = torch.randn(5, backbone.width), model.head.get_parameter("bias_K")
    inside = 15 - math.log(2) - 0.5  # Huber of relu(E + 15) with E = -ln 2
    assert inside == pytest.approx(14.307 - 0.5, abs=1e-3)
    loss = model.outlier_loss(backbone, batch)  # outliers: -3 - E < 0 costs nothing
    assert loss.item() == pytest.approx(math.log(2) + 0.1 * inside, abs=1e-5)
    with torch.no_grad():
        bias.copy_(torch.tensor([20.0, 20.0]))  # E = -20 - ln 2: features far enough, outliers too low
    outside = -3 + 20 + math.log(2) - 0.5
    assert model.outlier_loss(backbone, batch).item() == pytest.approx(math.log(2) + 0.1 * outside, abs=1e-4)
    with torch.no_grad():
        bias.copy_(torch.tensor([3 - math.log(2) + 0.4] * 2))  # E = -3.4: Huber is quadratic below 1
    inside, outside = 15 - 3.4 - 0.5, 0.5 * 0.4**2
    wanted = math.log(2) + 0.1 * (inside + outside)
    assert model.outlier_loss(backbone, batch).item() == pytest.approx(wanted, abs=1e-4)


def test_the_outlier_loss_reaches_the_head_alone_and_is_reproducible(backbone: Backbone) -> None:
    model, batch = make(backbone, outliers="origin"), plain_batch(backbone)
    shake(model)
    model._outliers_OD = torch.randn(50, backbone.width)
    batches = [replace(batch, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    losses = [model.outlier_loss(backbone, one) for one in batches]
    assert losses[0].item() == losses[1].item() != losses[2].item()
    losses[0].backward()
    assert all(p.grad is None for p in model.prefixes_2LD)
    assert all(p.grad is not None for p in model.head.parameters())


def cluster(count: int, width: int) -> Tensor:
    """Features of one class: a direction, a length near 9, some spread."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.nn.functional.normalize(torch.randn(1, width, generator=generator))
    return 9 * (rows + 0.02 * torch.randn(count, width, generator=generator))


@pytest.mark.parametrize("count", [1, 7, 60, 90])
@pytest.mark.parametrize("kind", ["boundary", "origin"])
def test_outliers_are_where_they_should_be(kind: Literal["boundary", "origin"], count: int) -> None:
    width = 64
    features = cluster(count, width)
    found = draw_outliers(features, kind, torch.Generator().manual_seed(0))
    assert found.shape == (40, width)
    assert torch.equal(found, draw_outliers(features, kind, torch.Generator().manual_seed(0)))
    assert len(found.unique(dim=0)) == 40
    noise = 0.1 * math.sqrt(width)  # length of the noise, 0.8
    if kind == "origin":
        assert found.norm(dim=1).mean().item() == pytest.approx(noise, rel=0.4)
        return
    # A candidate is a unit feature and noise, at the length of the feature: near features and far from the origin.
    gap = torch.cdist(found, features).min(1).values / 9
    assert 0.7 * noise < gap.min() <= gap.max() < 2 * noise
    assert found.norm(dim=1).min() > 8


def test_outliers_are_the_farthest_candidates_around_the_farthest_features() -> None:
    """Written out by hand, for features of which 50 lie in a heap and 10 far from it."""
    features = cluster(60, 64)
    features[50:] += 6 * torch.nn.functional.normalize(torch.randn(10, 64, generator=torch.Generator()))
    found = draw_outliers(features, "boundary", torch.Generator().manual_seed(0))
    unit, length = features / features.norm(dim=1, keepdim=True), features.norm(dim=1)
    to_50th = torch.cdist(unit, unit).sort(dim=1).values[:, 49]
    edge = to_50th.argsort(descending=True)[:50]
    assert set(range(50, 60)) <= set(edge.tolist())
    noise = 0.1 * torch.randn(50 * 600, 64, generator=torch.Generator().manual_seed(0))
    at = edge.repeat_interleave(600)
    points = unit[at] + noise
    chosen = torch.cdist(points, unit).sort(dim=1).values[:, 49].argsort(descending=True)[:40]
    wanted = points[chosen] * length[at[chosen], None]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_singleprompt_is_a_layout_with_the_position_of_the_class_token_under_cosines(backbone: Backbone) -> None:
    settings: dict[str, Any] = {"prompt_init": "symmetric", "position": "class", "head": "cosine"}
    wide = make_method(Model, SimpleNamespace(width=768, depth=12), 100, layout=[(i, 20) for i in range(5)], **settings)
    assert sum(value.numel() for value in wide.state_dict().values()) == 230_400
    model, batch = make(backbone, layout=[(1, 3)], **settings), plain_batch(backbone)
    rows = model.prefixes_2LD[0] + backbone.vit.pos_embed[0, 0]
    features = backbone(batch.images_BCHW, [Prefix(1, rows[None, 0], rows[None, 1])]).pooled_BD
    assert torch.equal(model.features(backbone, batch), features)
    logits = model.logits(backbone, batch)
    wanted = torch.nn.functional.cosine_similarity(features[:, None], model.head.weight_KD, dim=2) / 0.1
    torch.testing.assert_close(logits, wanted)
    with torch.no_grad():
        model.head.weight_KD.mul_(torch.arange(1.0, 7.0)[:, None])
    torch.testing.assert_close(model.logits(backbone, batch), logits, atol=1e-5, rtol=1e-5)
