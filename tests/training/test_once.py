"""Features of what is frozen are computed once a run, and nothing else is: the same bits with and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_config, run_quietly, timeless
from told import counted
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.learner import Learner

ADAPTED = {"name": "ranpac", "width": 20, "adapt": "adapter", "size": 2}
FROZEN: list[dict[str, Any]] = [
    {"name": "ncm"},
    {"name": "ridge", "features": "deep"},
    {"name": "ranpac", "width": 20},
    ADAPTED,
    {"name": "aper", "size": 2},
    {"name": "fsa", "size": 2, "align_epochs": 1, "align_samples": 8},
    {"name": "anacp", "width": 20},
    {"name": "l2p_ridge", "pool_size": 4, "top_k": 2, "prompt_length": 2},
    {"name": "l2p_ridge", "pool_size": 4, "top_k": 2, "prompt_length": 2, "features": "deep"},
]


def told(learner: Learner, images: ImageSet) -> Tensor:
    return learner.logits(images, learner.labels(images))


@pytest.mark.parametrize("method", FROZEN, ids=lambda method: "-".join(map(str, method.values())))
def test_frozen_features_are_computed_once_a_run(
    backbone: Backbone, digits: list[ImageSet], method: dict[str, Any]
) -> None:
    """After three tasks the images of the first were asked for three times: each feature was one pass."""
    learner = Learner(make_config(method=method, eval={"batch_size": 6}), backbone)
    for number, images in enumerate(digits[:3]):
        learner.learn(images)
        with counted(backbone) as passes:
            first, second = told(learner, digits[0]), told(learner, digits[0])
        # The first time as test images: they are the very images of the first task, but that may know them already.
        if number:
            assert passes == []
        assert torch.equal(first, second)
    learner.batches.forget_queries()
    with counted(backbone) as passes:
        assert torch.equal(told(learner, digits[0]), first)
    assert sum(passes) in (len(digits[0]), 2 * len(digits[0]))  # of a plain and an adapted or prompted model


def test_each_adapter_is_a_feature_of_its_own(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method={"name": "ease", "size": 2}), backbone)
    for number, images in enumerate(digits[:3]):
        learner.learn(images)
        with counted(backbone) as passes:
            told(learner, digits[4].renamed(("0", "1")) if number == 0 else digits[0])
        assert len(passes) == 1  # the newest adapters alone


def test_what_is_trained_is_computed_again(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(), backbone)
    for images in digits[:2]:
        learner.learn(images)
        told(learner, digits[0])
        with counted(backbone) as passes:
            told(learner, digits[0])
        assert sum(passes) == len(digits[0])  # the prompted pass; queries are known


def test_domains_that_are_chosen_as_before_cost_no_pass(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method={"name": "sprompts", "length": 2, "centres": 1}), backbone)
    learner.learn(digits[0])
    before = told(learner, digits[0])
    learner.learn(digits[1])
    chosen = learner.method.choose(learner.batches.queries.whole(digits[0]))  # type: ignore[operator]
    with counted(backbone) as passes:
        now = told(learner, digits[0])
    assert passes == ([] if not chosen.any() else [len(digits[0])])
    if not chosen.any():
        assert torch.equal(now[:, :2], before)


def test_kept_only_for_the_very_same_values(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner, of = Learner(make_config(), backbone), torch.zeros(3)
    calls: list[None] = []

    def compute() -> Tensor:
        calls.append(None)
        return of.expand(16, 3).clone().requires_grad_()

    (batch,) = learner.batches.evaluation(digits[0], torch.zeros(16), 1)
    batch.once("one", compute, of).fill_(7)
    assert not batch.once("one", compute, of).any()
    assert not batch.once("one", compute, of.clone()).requires_grad
    assert len(calls) == 1
    of[1] = 1
    assert batch.once("one", compute, of).sum() == 16
    batch.once("other", compute, of)
    assert len(calls) == 3
    (again,) = learner.batches.evaluation(digits[0].select(range(16)), torch.zeros(16), 1)
    again.once("one", compute, of)  # another set
    assert len(calls) == 4


@pytest.mark.parametrize("cache_mb", [2048, 0])
def test_the_memory_that_is_allowed_bounds_it(backbone: Backbone, digits: list[ImageSet], cache_mb: int) -> None:
    learner = Learner(make_config(data={"cache_mb": cache_mb}, method={"name": "ncm"}), backbone)
    learner.learn(digits[0].select(range(0, 16, 2)))
    others = [digits[0].select(range(start, 16, 2)) for start in (0, 1)]
    for images in others:
        told(learner, images)
    with counted(backbone) as passes:
        for images in others:
            told(learner, images)
    assert len(passes) == (0 if cache_mb else 2)


@pytest.mark.parametrize("method", [ADAPTED, FROZEN[7], {"name": "ease", "size": 2}], ids=lambda m: m["name"])
def test_a_run_has_the_same_results_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    config = make_config(method=method, eval={"batch_size": 6})
    whole = run_quietly(config, tmp_path / "with")
    evaluate = Learner.evaluate

    def anew(learner: Learner, *arguments: Any, **more: Any) -> Any:
        learner.batches.forget_queries()
        return evaluate(learner, *arguments, **more)

    monkeypatch.setattr(Learner, "evaluate", anew)
    assert timeless(run_quietly(config, tmp_path / "without")) == timeless(whole)
