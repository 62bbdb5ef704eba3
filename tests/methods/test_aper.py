"""APER: `ncm` where the adapter does nothing, frozen after the first task, the same in any order after it."""

from __future__ import annotations

from typing import Any

import torch
from helpers import make_config

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.learner.learner import Learner


def make(backbone: Backbone, *tasks: ImageSet, **changes: Any) -> Learner:
    learner = Learner(
        make_config(**{"method": {"name": "aper", "size": 3}, "eval": {"batch_size": 1}, **changes}), backbone
    )
    for images in tasks:
        learner.learn(images)
    return learner


def test_an_adapter_that_was_not_trained_gives_the_ranking_of_ncm(backbone: Backbone, digits: list[ImageSet]) -> None:
    aper = make(backbone, *digits[:2], train={"lr": 1e-12})
    ncm = make(backbone, *digits[:2], method={"name": "ncm"})
    labels_N = ncm.labels(digits[1])
    torch.testing.assert_close(aper.logits(digits[1], labels_N), ncm.logits(digits[1], labels_N))


def test_any_order_after_the_first_task(backbone: Backbone, digits: list[ImageSet]) -> None:
    one, other = (make(backbone, *(digits[i] for i in order)) for order in ((0, 1, 2), (0, 2, 1)))
    rows = [other.classes.index(name) for name in one.classes]
    for images in digits[:3]:
        ours, theirs = one.logits(images, one.labels(images)), other.logits(images, other.labels(images))
        torch.testing.assert_close(theirs[:, rows], ours, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in one.method.parameters())
