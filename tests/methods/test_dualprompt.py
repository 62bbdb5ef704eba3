"""Acceptance tests of DualPrompt, on a small timm ViT."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers import make_config
from plain_method import PlainBatch, PlainTask, begin_task, make_method, plain_batch, shake
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.layers import cosine
from promptcl.learner import Learner
from promptcl.methods._base import TaskView, masked_cross_entropy
from promptcl.methods.dualprompt import Model
from promptcl.training import PastTask, Silent

GROUPS = [[0], [5, 11], [11, 3, 7], list(reversed(range(12))), [2, 2, 2]]


def make(backbone: Backbone, **options: Any) -> Model:
    return make_method(Model, backbone, **options)


def after_tasks(backbone: Backbone, tasks: int, model: type[Model] = Model, **options: Any) -> Model:
    """A method with an expert for each of several tasks of two classes, all of them different."""
    made = make_method(model, backbone, classes=2, copy_slots=False, **options)
    shake(made)
    for task in range(1, tasks):
        begin_task(made, task, 2)
        shake(made, 2 + task)
        with torch.no_grad():
            made.expert_1E2LD.mul_(task + 1)
    return made


def spread(backbone: Backbone, model: Model, count: int = 12) -> PlainBatch:
    """Images whose queries choose the experts in turn."""
    batch, keys_SD = plain_batch(backbone, count), torch.cat([model.past_keys_SD, model.key_1D]).detach()
    return replace(batch, query_BD=keys_SD[torch.arange(count) % len(keys_SD)])


def learner(backbone: Backbone, **options: Any) -> Learner:
    return Learner(make_config(method={"name": "dualprompt", **options}), backbone)


def method_of(made: Learner) -> Model:
    assert isinstance(made.method, Model)
    return made.method


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 253_440), ({"e_length": 20}, 944_640), ({"g_length": 3, "e_length": 10}, 9_216 + 460_800 + 7_680)],
    ids=["CIFAR-100", "ImageNet-R", "lengths of CODA-Prompt"],
)
def test_number_of_parameters_at_the_width_of_vit_b(options: dict[str, Any], count: int) -> None:
    model = make_method(Model, SimpleNamespace(width=768, depth=12), classes=10, **options)
    for task in range(1, 10):
        model.grow(cast(TaskView, PlainTask(task, 10)))
    head = 769 * 100
    assert sum(value.numel() for value in model.state_dict().values()) == count + head
    # Trained is what belongs to the present task: the past is no parameter.
    present = (count - model.general_G2LD.numel()) // 10 + model.general_G2LD.numel()
    assert sum(p.numel() for group in model.parameter_groups(0.1) for p in group["params"]) == present + head


def test_length_0_is_a_linear_head(backbone: Backbone) -> None:
    model, batch = make(backbone, g_length=0, e_length=0, head_init="uniform"), plain_batch(backbone)
    assert torch.equal(model.logits(backbone, batch), model.head(batch.query_BD))
    zeros = make(backbone, g_length=1, e_length=1, head_init="uniform")
    with torch.no_grad():
        zeros.general_G2LD.zero_()
        zeros.expert_1E2LD.zero_()
    assert (zeros.features(backbone, batch, zeros.expert_1E2LD) - batch.query_BD).abs().max() > 1e-3


def test_rows_of_keys_and_values_belong_together(backbone: Backbone) -> None:
    model, batch, order = after_tasks(backbone, 1), plain_batch(backbone), [3, 1, 4, 0, 2]
    expert = model.expert_1E2LD.detach()
    before = model.features(backbone, batch, expert)
    torch.testing.assert_close(model.features(backbone, batch, expert[..., order, :]), before, atol=1e-5, rtol=1e-5)
    keys_only = torch.stack([expert[:, :, 0, order], expert[:, :, 1]], 2)
    assert (model.features(backbone, batch, keys_only) - before).abs().max() > 1e-3


class Mixed(Model):
    """Experts are reshaped as in dualprompt-pytorch, axes of keys, values and images mixed up."""

    def features(self, backbone: Backbone, batch: Any, expert_BE2LD: Tensor) -> Tensor:
        x = expert_BE2LD.expand(len(batch.images_BCHW), -1, -1, -1, -1).permute(1, 2, 0, 3, 4)
        mixed = x.reshape(x.shape[0], x.shape[2], 2, *x.shape[3:])  # (layers, 2, B, ..) to (layers, B, 2, ..)
        return super().features(backbone, batch, mixed.transpose(0, 1))


def check_neighbours(backbone: Backbone, model: Model) -> None:
    """Raise AssertionError where an image is answered otherwise among other images."""
    batch = spread(backbone, model)
    assert model.choose(batch.query_BD).tolist() == [0, 1, 2] * 4
    whole = model.logits(backbone, batch)
    for rows in GROUPS:
        alone = model.logits(backbone, batch.rows(rows))
        torch.testing.assert_close(alone, whole[rows], atol=1e-4, rtol=1e-4)
        assert torch.equal(alone.argmax(1), whole[rows].argmax(1))


def test_neighbours_never_change_a_prediction(backbone: Backbone) -> None:
    check_neighbours(backbone, after_tasks(backbone, 3))


def test_an_image_meets_the_keys_and_values_of_its_own_expert(backbone: Backbone) -> None:
    model = after_tasks(backbone, 3)
    batch, experts = spread(backbone, model), torch.cat([model.past_experts_SE2LD, model.expert_1E2LD])
    whole = model.logits(backbone, batch)
    for row in range(12):
        own = model.features(backbone, batch.rows([row]), experts[[row % 3]])
        torch.testing.assert_close(whole[[row]], model.head(own), atol=1e-4, rtol=1e-4)


def test_the_defective_reshape_is_found(backbone: Backbone) -> None:
    """What it mixes up: prefix (10 b, 10 b + 1) of image b; and that the test of neighbours sees it."""
    pairs = torch.tensor([[10 * b, 10 * b + 1] for b in range(4)])
    assert pairs.T.reshape(4, 2).tolist() == [[0, 10], [20, 30], [1, 11], [21, 31]]
    with pytest.raises(AssertionError):
        check_neighbours(backbone, after_tasks(backbone, 3, Mixed))
    # Even where all images take one expert, half of them get its keys twice and half its values.
    right, mixed = after_tasks(backbone, 1), after_tasks(backbone, 1, Mixed)
    batch = plain_batch(backbone)
    assert (right.logits(backbone, batch) - mixed.logits(backbone, batch)).abs().max() > 1e-2


def test_gradient_reaches_what_belongs_to_the_task(backbone: Backbone) -> None:
    model = after_tasks(backbone, 2)
    model.loss(backbone, plain_batch(backbone, 4, 4).allowing(2, 3, of=4).rows([2, 3])).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == {
        *("general_G2LD", "expert_1E2LD", "key_1D", "head.weight_KD", "head.bias_K")
    }
    assert model.general_G2LD.grad is not None
    assert model.expert_1E2LD.grad is not None
    assert model.general_G2LD.grad.abs().sum((2, 3)).all()
    assert model.expert_1E2LD.grad.abs().sum((3, 4)).all()
    for p in model.head.parameters():
        assert p.grad is not None
        assert not p.grad[:2].any()
    assert all(p.grad is None for p in backbone.parameters())
    assert not model.past_experts_SE2LD.requires_grad
    assert not model.past_keys_SD.requires_grad


def test_the_pull_reaches_the_key_alone(backbone: Backbone) -> None:
    model, batch = after_tasks(backbone, 2, pull=0.7), plain_batch(backbone)
    expert = model.expert_1E2LD
    rest = masked_cross_entropy(model.head(model.features(backbone, batch, expert)), batch)
    pull = model.loss(backbone, batch) - rest
    assert pull.item() == pytest.approx(-0.7 * cosine(batch.query_BD, model.key_1D).mean().item(), abs=1e-5)
    pull.backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-5}
    assert found == {"key_1D"}


def test_without_pull_keys_stay(backbone: Backbone) -> None:
    model = after_tasks(backbone, 1, pull=0.0)
    model.loss(backbone, plain_batch(backbone, 4, 2)).backward()
    assert model.key_1D.grad is None


def test_first_step_with_a_head_of_zeros_moves_the_key_and_no_prompt(backbone: Backbone) -> None:
    for init in ("zero", "uniform"):
        model = make(backbone, head_init=init)
        model.loss(backbone, plain_batch(backbone)).backward()
        for p in (model.general_G2LD, model.expert_1E2LD):
            assert p.grad is not None
            assert p.grad.any() == (init == "uniform")
        assert model.key_1D.grad is not None
        assert model.key_1D.grad.any()


@pytest.mark.parametrize("copy_slots", [True, False])
def test_the_past_is_frozen_and_an_expert_begins_as_the_one_before(
    backbone: Backbone, digits: list[ImageSet], copy_slots: bool
) -> None:
    made = learner(backbone, copy_slots=copy_slots)
    model, vit = method_of(made), {name: value.clone() for name, value in backbone.state_dict().items()}
    made.learn(digits[0])
    expert, key = model.expert_1E2LD.detach().clone(), model.key_1D.detach().clone()
    head, general = model.head.weight_KD.detach().clone(), model.general_G2LD.detach().clone()
    begun: list[Tensor] = []

    class Watch(Silent):
        def stage(self, number: int, steps: int) -> None:
            begun.extend([model.expert_1E2LD.detach().clone(), model.key_1D.detach().clone()])

    made.learn(digits[1], progress=Watch())
    assert torch.equal(begun[0], expert) == copy_slots
    assert not torch.equal(begun[1], key)  # keys are not copied
    assert torch.equal(model.past_experts_SE2LD, expert)
    assert torch.equal(model.past_keys_SD, key)
    assert torch.equal(model.head.weight_KD[:2], head)
    assert not torch.equal(model.general_G2LD, general)
    assert not torch.equal(model.expert_1E2LD, begun[0])
    assert not torch.equal(model.key_1D, begun[1])
    assert all(torch.equal(value, vit[name]) for name, value in backbone.state_dict().items())


def test_the_nearest_key_names_the_expert(backbone: Backbone) -> None:
    model = after_tasks(backbone, 4)
    vectors = torch.linalg.qr(torch.randn(backbone.width, 4, generator=torch.Generator().manual_seed(0))).Q.T
    with torch.no_grad():
        model.past_keys_SD.copy_(vectors[:3])
        model.key_1D.copy_(vectors[3:])
    assert model.choose(vectors * 3).tolist() == [0, 1, 2, 3]
    said = model.stats.take()
    assert said["prompts"] == [1, 1, 1, 1]
    assert said["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_training_takes_the_expert_of_the_task_whatever_the_query_says(backbone: Backbone) -> None:
    model = after_tasks(backbone, 2, pull=0.0)
    batch = plain_batch(backbone)
    towards_first = replace(batch, query_BD=model.past_keys_SD.expand(4, -1))
    assert model.choose(towards_first.query_BD).tolist() == [0] * 4
    assert model.loss(backbone, towards_first).item() == model.loss(backbone, batch).item()


def test_vote_of_the_release_depends_on_neighbours(backbone: Backbone) -> None:
    model = after_tasks(backbone, 2, vote="batch", vote_size=3)
    batch = spread(backbone, model, 6)  # experts 0 1 0, 1 0 1
    assert model.choose(batch.query_BD).tolist() == [0, 0, 0, 1, 1, 1]
    assert model.choose(batch.query_BD[1:2]).tolist() == [1]
    assert model.together == 3
    assert after_tasks(backbone, 1).together == 1


def test_a_stream_without_boundaries_is_refused(backbone: Backbone) -> None:
    with pytest.raises(UserError, match="needs to know where tasks end"):
        make(backbone).grow(cast(TaskView, PastTask(0, 0, 2, 2, boundaries=False)))
    with pytest.raises(UserError, match="needs to know where tasks end"):
        Learner(make_config(method={"name": "dualprompt"}, scenario="gaussian"), backbone)


def test_tasks_of_one_class_of_two_images_and_of_known_classes(backbone: Backbone, digits: list[ImageSet]) -> None:
    made = learner(backbone)
    for images in (digits[0].of_classes("0"), digits[1].select([0, 1]), digits[0].of_classes("0").select([0])):
        made.learn(images)
    assert made.classes == ["0", "2", "3"]
    assert len(method_of(made).past_keys_SD) == 2
    assert made.logits(digits[0].of_classes("0"), torch.zeros(8)).isfinite().all()


@pytest.mark.parametrize(
    "method",
    [
        {"name": "dualprompt", "e_layers": [6]},
        {"name": "dualprompt", "g_layers": [-1]},
        {"name": "oneprompt", "layout": [[0, 1], [9, 1]]},
    ],
)
def test_a_layer_that_the_vit_lacks_is_refused_at_once(method: dict[str, Any], backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"name layer (6|-1|9), the ViT has layers 0 to 5; write layers that it has"):
        Learner(make_config(method=method), backbone)
