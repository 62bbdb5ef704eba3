"""RanPAC: the same in any order, frozen after the first task, and `ridge` where nothing is projected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_config, same_state
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet, concat
from promptcl.layers.adapters import Adapters
from promptcl.learner.learner import Learner
from promptcl.methods.ranpac import Model, RanPACOptions

# Each image passes the ViT alone: what else is in a batch moves its last bits.
ALONE = {"batch_size": 1}
ADAPTED = {"name": "ranpac", "width": 40, "adapt": "adapter", "size": 3}


def make(backbone: Backbone, *tasks: ImageSet, **changes: Any) -> Learner:
    """A learner of some tasks; RanPAC with a short projection, unless `method` says otherwise."""
    learner = Learner(make_config(**{"method": {"name": "ranpac", "width": 40}, **changes}), backbone)
    for images in tasks:
        learner.learn(images)
    return learner


def adapted_of(learner: Learner) -> dict[str, Tensor]:
    state = learner.method.state_dict()
    return {name: value.clone() for name, value in state.items() if name.startswith("adapted.")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [{}, {"features": "deep", "cosine": 0.5}, {"rows": 100}, {"width": 0, "rows": 100}], ids=str
)
def test_any_order_of_tasks_and_any_split(method: dict[str, Any], backbone: Backbone, digits: list[ImageSet]) -> None:
    """Same weights of each class to 1e-6, in sums and in rows, with the strength that is chosen of all."""
    changes: dict[str, Any] = {"method": {"name": "ranpac", "width": 40, **method}, "eval": ALONE}
    one = make(backbone, *digits[:3], **changes)
    halves = [images.select(range(i, len(images), 2)) for images in digits[:3] for i in (1, 0)]
    for tasks in (digits[2::-1], [halves[k] for k in (4, 1, 0, 3, 5, 2)], [concat(digits[:3])]):
        other = make(backbone, *tasks, **changes)
        rows = [other.classes.index(name) for name in one.classes]
        ours, theirs = one.method.state_dict(), other.method.state_dict()
        for name in ("ridge.weight_KD", "ridge.bias_K"):
            torch.testing.assert_close(theirs[name][rows], ours[name], rtol=1e-6, atol=1e-9)


def test_new_classes_do_not_change_what_is_known_of_old_ones(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, digits[0])
    before = learner.method.state_dict()["ridge.sum_KD.value"].clone()
    learner.learn(digits[1])
    assert torch.equal(learner.method.state_dict()["ridge.sum_KD.value"][:2], before)


@pytest.mark.parametrize(
    "settings", [{}, {"features": "deep", "cosine": 0.5}, {"rows": 100, "balance": False}], ids=str
)
def test_without_a_projection_it_is_ridge(settings: dict[str, Any], backbone: Backbone, digits: list[ImageSet]) -> None:
    """Bit for bit, its answers and all that ridge keeps."""
    ranpac = make(backbone, *digits[:2], method={"name": "ranpac", "width": 0, **settings})
    ridge = make(backbone, *digits[:2], method={"name": "ridge", **settings})
    ours, theirs = ranpac.method.state_dict(), ridge.method.state_dict()
    assert theirs.keys() <= ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    labels_N = ridge.labels(digits[1])
    assert torch.equal(ranpac.logits(digits[1], labels_N), ridge.logits(digits[1], labels_N))
    assert ranpac.calibration == ridge.calibration


def test_an_absolute_penalty_is_the_paper_s(backbone: Backbone, digits: list[ImageSet]) -> None:
    """(G + lambda I)^-1 Q with directions from N(0, 1), which the method has shorter by the root of their length."""
    settings = {"strength": 30.0, "penalty": "absolute", "centred": False, "balance": False}
    learner = make(backbone, *digits[:2], method={"name": "ranpac", "width": 40, **settings})
    method = learner.method
    assert isinstance(method, Model)
    features, labels = list[Tensor](), list[Tensor]()
    for images in digits[:2]:
        labels.append(learner.labels(images))
        for batch in learner.batches.evaluation(images, labels[-1], 1):
            features.append(batch.query_BD.double())
    directions_FM = method.directions_FM.double() * backbone.width**0.5
    lifted_NM = torch.relu(torch.cat(features) @ directions_FM)
    targets_NK = torch.nn.functional.one_hot(torch.cat(labels), 4).double()
    wanted = torch.linalg.solve(lifted_NM.T @ lifted_NM + 30 * torch.eye(40).double(), lifted_NM.T @ targets_NK)
    answers = torch.cat([learner.logits(images, labels[i]) for i, images in enumerate(digits[:2])])
    torch.testing.assert_close(answers.double(), lifted_NM @ wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_the_head_that_trains_the_adapters_is_read_no_more(
    head: str, backbone: Backbone, digits: list[ImageSet]
) -> None:
    learner = make(backbone, *digits[:2], method={**ADAPTED, "training_head": head})
    state = learner.method.state_dict()
    assert ("head.scale" in state) == (head == "cosine")
    assert state["head.weight_KD"].shape == (2, backbone.width)
    assert not any(p.requires_grad for p in learner.method.parameters())


@pytest.mark.slow
def test_numbers_that_are_trained() -> None:
    """None where the ViT is frozen; an adapter of inner width r has r (2 D + 1) + D of a block of width D."""
    large = {"kwargs": {"depth": 12, "embed_dim": 768, "num_heads": 12, "mlp_ratio": 0.1}}
    backbone = Backbone.create(make_config(backbone=large).backbone)
    assert (backbone.depth, backbone.width) == (12, 768)
    assert Learner(make_config(method={"name": "ranpac"}), backbone).trained_parameters() == 0
    adapters = Adapters(backbone, 64, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in adapters.parameters()) == 12 * (64 * (2 * 768 + 1) + 768) == 1_189_632
    learner = Learner(make_config(method={"name": "ranpac", "adapt": "adapter", "size": 64}), backbone)
    assert learner.trained_parameters() == 1_189_632


@pytest.mark.parametrize("adapt", ["adapter", "ssf", "prompts", "lora"])
def test_what_the_first_task_adapts_is_frozen_then(adapt: str, backbone: Backbone, digits: list[ImageSet]) -> None:
    method, train = {**ADAPTED, "adapt": adapt}, {"holdout": 0.25}
    fresh = adapted_of(make(backbone, method=method))
    learner = make(backbone, digits[0], method=method, train=train)
    adapted = adapted_of(learner)
    assert any(not torch.equal(adapted[name], fresh[name]) for name in adapted)
    head_KD = learner.method.state_dict()["head.weight_KD"].clone()
    for images in digits[1:3]:
        record = learner.learn(images)
        assert learner.trained_parameters() == sum(p.numel() for p in learner.method.parameters())
        assert not any(p.requires_grad for p in learner.method.parameters())
        assert record.images == 12  # each image that is not held out was seen once
    now = adapted_of(learner)
    assert all(torch.equal(now[name], value) for name, value in adapted.items())
    assert torch.equal(learner.method.state_dict()["head.weight_KD"], head_KD)
    assert learner.method.state_dict()["ridge.count_K.value"].tolist() == [8] * 6  # held-out images are absorbed


@pytest.mark.parametrize("method", [{"name": "ranpac", "width": 40}, {"name": "ranpac", "rows": 100}, ADAPTED], ids=str)
@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_saved_and_loaded_it_goes_on_to_the_same_bits(
    method: dict[str, Any], holdout: float, backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    train = {"holdout": holdout}
    never = make(backbone, *digits[:3], method=method, train=train)
    for number, images in enumerate(digits[:3]):
        learner = (
            Learner.load(tmp_path / "s", backbone=backbone) if number else make(backbone, method=method, train=train)
        )
        learner.learn(images)
        learner.save(tmp_path / "s")
    loaded = Learner.load(tmp_path / "s", backbone=backbone)
    assert same_state(never, loaded)
    assert never.calibration == loaded.calibration
    labels_N = never.labels(digits[0])
    assert torch.equal(never.logits(digits[0], labels_N), loaded.logits(digits[0], labels_N))


def test_the_projection_is_of_the_seed_and_not_saved(backbone: Backbone, digits: list[ImageSet]) -> None:
    one, same, other = (make(backbone, digits[0], seed=seed).method for seed in (1, 1, 2))
    assert isinstance(one, Model)
    assert isinstance(same, Model)
    assert isinstance(other, Model)
    assert not any("directions" in name for name in one.state_dict())
    assert torch.equal(one.directions_FM, same.directions_FM)
    assert not torch.equal(one.directions_FM, other.directions_FM)
    assert one.directions_FM.shape == (backbone.width, 40)
    assert one.lift(-torch.ones(1, backbone.width)).min() == 0


def test_one_class_adapts_nothing_worth_having(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method=ADAPTED), backbone)
    (warning,) = learner.learn(digits[0].of_classes(["0"])).warnings
    assert warning == "the first task has one class, from which nothing can be adapted; begin with several"
    learner.learn(digits[1])
    assert learner.evaluate(digits[1]).images == 16


def test_rows_of_an_adapted_model_are_refused() -> None:
    with pytest.raises(ValueError, match="rows=5 with adapt=ssf: what was trained cannot be taken away; rows=0"):
        RanPACOptions(adapt="ssf", rows=5)


def test_features_of_adapters_that_are_gone_are_gone_too(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Undone and learned anew, the same images pass the new adapters, whatever was kept of the old ones."""
    changes: dict[str, Any] = {"method": {**ADAPTED, "adapt_lr": 0.5}}
    learner, never = make(backbone, digits[0], **changes), make(backbone, digits[1], **changes)
    learner.evaluate(digits[0])
    learner.undo()
    learner.learn(digits[1])
    learner.learn(digits[0])
    never.learn(digits[0])
    labels_N = never.labels(digits[0])
    torch.testing.assert_close(learner.logits(digits[0], labels_N), never.logits(digits[0], labels_N))


def test_more_images_than_rows_are_said_once(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method={"name": "ridge", "rows": len(digits[0]) + 1}), backbone)
    said = [learner.learn(images).warnings for images in digits[:3]]
    assert [len(one) for one in said] == [0, 1, 0]
    assert f"method.rows={len(digits[0]) + 1}" in said[1][0]
    assert not learner.method.mendable
