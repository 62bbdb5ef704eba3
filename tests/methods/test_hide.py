"""HiDe-Prompt: slots, the contrastive term, alignment that moves heads alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import make_config
from plain_method import plain_batch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.layers.losses import contrast
from promptcl.learner.learner import Learner
from promptcl.methods.hide import Model

HIDE = {"name": "hide", "align_epochs": 1, "align_samples": 16, "layers": [0, 1], "length": 2}


def make(backbone: Backbone, *tasks: ImageSet, **changes: Any) -> Model:
    learner = Learner(make_config(method={**HIDE, **changes}), backbone)
    for images in tasks:
        learner.learn(images)
    assert isinstance(learner.method, Model)
    return learner.method


def test_contrast_of_equal_and_of_far_rows() -> None:
    assert contrast(torch.ones(3, 5), torch.ones(4, 5)).item() == pytest.approx(math.log(7))
    assert contrast(torch.zeros(0, 5), 20 * torch.eye(5)).item() < 1e-6


def test_the_mixture_of_slots(backbone: Backbone, digits: list[ImageSet]) -> None:
    """With m = 1 a slot becomes the mean of the earlier ones; earlier slots never change."""
    slots = make(backbone, *digits[:3], momentum=1.0).slots.all
    torch.testing.assert_close(slots[1], slots[0])
    torch.testing.assert_close(slots[2], slots[:2].mean(0))
    two = make(backbone, *digits[:2]).slots.all
    assert torch.equal(make(backbone, *digits[:3]).slots.all[:2], two)


def test_without_momentum_a_slot_stays_as_it_was_trained(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Two tasks with m = 0: slot 1 is what the trained one is, which with m = 1 is lost."""
    trained, mixed = (make(backbone, *digits[:2], momentum=m, contrast=0.0).slots for m in (0.0, 1.0))
    assert not torch.equal(trained.newest[0], trained.past[0])
    assert torch.equal(trained.mixed(0.0), trained.newest)
    assert torch.equal(mixed.newest[0], mixed.past[0])


def test_a_later_task_trains_its_slot_its_rows_and_the_finder(backbone: Backbone, digits: list[ImageSet]) -> None:
    model = make(backbone, *digits[:2])
    batch = plain_batch(backbone, 6, 4).allowing(2, 3, of=4).rows([2, 3])
    model.zero_grad()  # of the alignment
    model.loss(backbone, batch).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name for name in moved if not name.startswith("finder.")} == {
        "slots.newest",
        "head.weight_KD",
        "head.bias_K",
    }
    assert model.head.weight_KD.grad is not None
    assert not model.head.weight_KD.grad[:2].any()


def test_an_image_meets_the_slot_of_its_own_answer_whoever_is_beside_it(
    backbone: Backbone, digits: list[ImageSet]
) -> None:
    """Batches of 1, 2, 3 and 12, reversed and with copies, of images that the finder sends to different slots."""
    model, batch = make(backbone, *digits[:3]), plain_batch(backbone, 12)
    with torch.no_grad():
        model.slots.past.normal_(generator=torch.Generator().manual_seed(3))
    route_BK = torch.nn.functional.one_hot(torch.arange(12) * 2 % 6, 6).float()
    table = {tuple(query.tolist()): row for query, row in zip(batch.query_BD, route_BK, strict=True)}
    found = lambda query_BD: torch.stack([table[tuple(query.tolist())] for query in query_BD])  # noqa: E731
    model.finder.forward = found  # type: ignore[method-assign]
    with torch.no_grad():
        whole = model.logits(backbone, batch)
        assert model.stats.take()["prompts"] == [4, 4, 4]
        for row in range(12):
            slot = model.slots.all[[row % 3]]
            own = model.head(model.features(backbone, batch.rows([row]), slot))
            torch.testing.assert_close(whole[[row]], own, atol=1e-4, rtol=1e-4)
        for rows in ([0], [5, 11], [11, 3, 7], list(reversed(range(12))), [2, 2, 1]):
            torch.testing.assert_close(model.logits(backbone, batch.rows(rows)), whole[rows], atol=1e-4, rtol=1e-4)


def test_alignment_moves_heads_alone(backbone: Backbone, digits: list[ImageSet]) -> None:
    aligned, raw = (make(backbone, *digits[:2], align_epochs=epochs).state_dict() for epochs in (1, 0))
    moved = {name for name in raw if not torch.equal(raw[name], aligned[name])}
    assert "head.weight_KD" in moved
    assert all(name.startswith(("head.", "finder.")) for name in moved)


def test_a_finder_that_is_always_right(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Gives the logits of the slot of each image, and a known class keeps the task that introduced it."""
    learner = Learner(make_config(method=HIDE), backbone)
    said = [learner.learn(images).warnings for images in (digits[0], digits[1], digits[0])]
    assert said[2] == ["task 3 has no new class, so `hide` trains no prefixes for it; heads are aligned"]
    assert not any("no new class" in one for one in [*said[0], *said[1]])
    method = learner.method
    assert isinstance(method, Model)
    assert method.task_of_class_K.tolist() == [0, 0, 1, 1]
    labels_N = learner.labels(digits[1])
    (batch,) = learner.batches.evaluation(digits[1], labels_N, 1)

    def right(features_BD: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(labels_N, 4).float()

    method.finder.forward = right  # type: ignore[method-assign]
    forced = method.head(method.features(backbone, batch, method.slots.all[1:2]))
    torch.testing.assert_close(method.logits(backbone, batch), forced)
