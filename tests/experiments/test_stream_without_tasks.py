"""A stream that never says where a task ends: what is masked, what optimisers remember, which methods are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Seen, digit_tasks, make_config, merged, run_quietly, same_state

from promptcl import store
from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Config
from promptcl.data.images import ImageSet, concat
from promptcl.errors import UserError
from promptcl.experiments.progress import QuietUi
from promptcl.experiments.run import run
from promptcl.learner.learner import Learner
from promptcl.training.optim import load_moments, make_optimizer

FEW: dict[str, Any] = {
    "scenario": "gaussian",
    "data": {"train_per_class": 6, "test_per_class": 3, "augment": "none"},
    "method": {"pool_size": 6},
}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def small(**changes: Any) -> Config:
    return make_config(**merged(FEW, changes))


@pytest.fixture(scope="module")
def digits() -> list[ImageSet]:
    return digit_tasks(6)


@pytest.mark.slow
def test_a_stream_without_tasks(tmp_path: Path) -> None:
    gaussian = {"micro_tasks": 10, "steps": 2, "sigma": 3.0, "evaluate_every": 4}
    config = small(gaussian=gaussian, train={"mask_classes": "batch"}, memory={"per_class": 1})
    lines: list[str] = []
    results = run(config, tmp_path / "a", QuietUi(tmp_path, write=lines.append))
    assert [record["task"] for record in results["tasks"]] == [3, 7, 9]
    assert sum(line.startswith("task") for line in lines) == 3
    assert results["schedule"]["peaks"] == list(range(1, 20, 2))
    assert len(results["schedule"]["included"]) == 10
    assert [point[0] for point in results["accuracy_curve"]] == [4, 8, 10]
    assert all(record["eval_images"] == 30 for record in results["tasks"])  # classes to come are in the test set too
    assert results["tasks"][0]["classes"] < 10
    assert results["forgetting"] is None
    again = run_quietly(config, tmp_path / "b")
    assert again["accuracy_curve"] == results["accuracy_curve"]
    assert again["prompt_selections"] == results["prompt_selections"]


def steps_of(learner: Learner, stage: int = 0) -> set[int]:
    """Steps that the optimiser of a stage has taken, of all its parameters."""
    return {int(value) for name, value in learner.moments[stage].items() if name.endswith(".step")}


def test_the_mask_is_of_the_batch_and_moments_go_on(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = Learner(small(train={"mask_classes": "batch"}), backbone)
    seen, together = Seen(learner), concat([digits[0], digits[1]])
    learner.learn(together)
    for mask, labels in zip(seen.masks, seen.labels, strict=True):
        assert mask is not None
        for row in mask.tolist():
            assert {k for k, on in enumerate(row) if on} == set(labels)
    assert steps_of(learner) == {3}  # 24 images in batches of 8
    learner.save(tmp_path)
    loaded = Learner.load(tmp_path, backbone=backbone)
    assert {name.split(".")[1] for name in store.load(tmp_path).state if name.startswith("optimizer.")} == {"0"}
    for one in (learner, loaded):
        one.learn(digits[2])
        assert steps_of(one) == {3 + 2}  # 12 more: the moments were kept
    assert same_state(learner, loaded)


def test_moments_are_carried_stage_by_stage(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """Each stage goes on with its own, whatever parameters it trains; in a new process too."""
    method = {"name": "oneprompt", "layout": [[0, 2], [1, 3]], "outliers": "boundary", "outlier_epochs": 2}
    learner = Learner(small(method=method), backbone)
    learner.learn(digits[0])
    assert [steps_of(learner, stage) for stage in (0, 1)] == [{2}, {4}]
    learner.save(tmp_path)
    for one in (learner, loaded := Learner.load(tmp_path, backbone=backbone)):
        one.learn(digits[1])
        assert [steps_of(one, stage) for stage in (0, 1)] == [{4}, {8}]
    assert same_state(learner, loaded)


def test_another_optimiser_begins_without_moments(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = Learner(small(), backbone)
    learner.learn(digits[0])
    learner.save(tmp_path)
    other = Learner.load(tmp_path, ["train.optimizer=sgd"], backbone)
    other.learn(digits[1])
    assert {name.partition(".")[2] for name in other.moments[0]} == {"momentum_buffer"}
    other.save(tmp_path)
    back = Learner.load(tmp_path, ["train.optimizer=adam"], backbone)
    back.learn(digits[2])
    assert steps_of(back) == {2}


def test_where_tasks_are_told_optimisers_are_fresh(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = Learner(small(scenario="class"), backbone)
    learner.learn(digits[0])
    learner.save(tmp_path)
    assert not learner.moments
    assert not any(name.startswith("optimizer.") for name in store.load(tmp_path).state)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "l2p", "diversify": "slots"},
        {"name": "l2p", "diversify": "frequency"},
        {"name": "l2p_ridge"},
        {"name": "dualprompt"},
    ],
    ids=["slots", "frequency", "l2p_ridge", "dualprompt"],
)
def test_who_needs_to_know_where_tasks_end_is_refused_before_anything_is_written(
    method: dict[str, Any], tmp_path: Path
) -> None:
    named = rf"^method.name={method['name']} with these options needs to know where tasks end.*diversify=none$"
    with pytest.raises(UserError, match=named):
        run_quietly(small(method=method), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_carried_moments_keep_their_rows(backbone: Backbone, digits: list[ImageSet]) -> None:
    config = small()
    learner = Learner(config, backbone)
    learner.learn(digits[0])
    before, head = learner.moments[0], trained_names(learner).index("head.weight_KD")
    with torch.no_grad():
        learner.begin(digits[1])
    new = make_optimizer(learner.method.parameter_groups(0.01), 0.01, config.train)
    load_moments(new, before)
    moment = new.state[learner.method.get_parameter("head.weight_KD")]["exp_avg"]
    assert torch.equal(moment[:2], before[f"{head}.exp_avg"])
    assert before[f"{head}.exp_avg"].any()
    assert moment.shape == (4, 64)
    assert not moment[2:].any()
    for number, odd in ((head, torch.zeros(9, 9)), (head, torch.zeros(1, 65)), (99, torch.zeros(2, 64))):
        with pytest.raises(UserError, match="not those of its parameters; take a copy of it that is whole"):
            load_moments(new, {f"{number}.{name}": odd for name in MOMENTS})


def trained_names(learner: Learner) -> list[str]:
    """Names of the parameters in the order in which an optimiser counts them."""
    names = {id(p): name for name, p in learner.method.named_parameters()}
    return [names[id(p)] for group in learner.method.parameter_groups(1.0) for p in group["params"]]
