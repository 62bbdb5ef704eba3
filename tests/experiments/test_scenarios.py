"""Every scenario end to end on real digits with a small ViT: what is masked, replayed, kept and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Seen, digit_tasks, make_config, merged

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Config
from promptcl.data.images import ImageSet
from promptcl.experiments.progress import QuietUi
from promptcl.experiments.run import _watch_pool, nothing_done, run
from promptcl.learner.learner import Learner

FEW: dict[str, Any] = {
    "tasks": 5,
    "data": {"train_per_class": 6, "test_per_class": 3, "augment": "none"},
    "method": {"pool_size": 6},
}


def small(**changes: Any) -> Config:
    return make_config(**merged(FEW, changes))


@pytest.fixture(scope="module")
def digits() -> list[ImageSet]:
    return digit_tasks(6)


def shown(config: Config, out: Path) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    results = run(config, out, QuietUi(out, write=lines.append))
    assert json.loads((out / "results.json").read_text()) == results
    assert results["scenario"] == config.scenario
    return results, lines


@pytest.mark.slow
def test_domains_one_after_the_other(assets: Path, tmp_path: Path) -> None:
    data = {"name": "domains", "root": str(assets / "data" / "five_datasets"), "order": ["mnist", "svhn"]}
    results, _ = shown(small(scenario="domain", data=data), tmp_path / "own")
    assert [len(row) for row in results["accuracy_matrix"]] == [2, 2]
    assert results["forgetting"] is not None
    assert results["final_accuracy"] is None
    assert [record["classes"] for record in results["tasks"]] == [10, 10]
    common = small(scenario="domain", data={**data, "test_set": "common"}, memory={"per_class": 2})
    results, lines = shown(common, tmp_path / "common")
    assert [len(row) for row in results["accuracy_matrix"]] == [1, 1]
    assert results["tasks"][0]["eval_images"] == 60
    assert results["final_accuracy"] == results["average_accuracy"] == results["accuracy_curve"][-1][2]
    assert results["forgetting"] is results["learning_accuracy"] is None
    assert results["memory_images"] == 20
    assert "forgetting -" in lines[-1]


def test_no_mask_with_domains(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(small(scenario="domain"), backbone)
    seen = Seen(learner)
    learner.learn(digits[0])
    assert seen.masks
    assert all(mask is None for mask in seen.masks)


@pytest.mark.slow
@pytest.mark.parametrize("diversify", ["slots", "frequency"])
def test_five_datasets(assets: Path, tmp_path: Path, diversify: str) -> None:
    data = {"name": "five_datasets", "root": str(assets / "data" / "five_datasets"), "train_per_class": 3}
    method = {"diversify": diversify, "pool_size": 8}
    results, lines = shown(small(data=data, method=method), tmp_path)
    assert [record["name"] for record in results["tasks"]] == ["cifar10", "mnist", "svhn", "notmnist", "fashion_mnist"]
    assert len(results["classes"]) == 50
    assert results["forgetting"] is not None
    chosen = [{m for m, n in enumerate(row) if n} for row in results["prompt_selections"]["train"]]
    if diversify == "slots":
        assert chosen[:4] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
        assert [
            w for w in results["warnings"] if "task 5 selects freely: its slots 8 to 9 are beyond the pool of 8" in w
        ]
        assert any(line.startswith("warning: task 5") for line in lines)
        assert sum(map(sum, results["prompt_selections"]["test"])) == 5 * 30 * 2  # free at test, counted
    else:
        assert not chosen[0] & chosen[1]  # never chosen before: distance times zero
        assert len(set.union(*chosen)) == 8


@pytest.mark.parametrize("method", [{"name": "l2p"}, {"name": "linear"}])
def test_replayed_rows_are_not_masked_and_new_ones_are(
    backbone: Backbone, digits: list[ImageSet], method: dict[str, Any]
) -> None:
    config = small(memory={"per_class": 2, "batch_size": 3})
    config = config.model_copy(update={"method": method})
    learner = Learner(config, backbone)
    learner.learn(digits[0])
    seen = Seen(learner)
    record = learner.learn(digits[1])
    assert record.images == 12 + 2 * 3
    assert [len(labels) for labels in seen.labels] == [8 + 3, 4 + 3]
    for mask, labels in zip(seen.masks, seen.labels, strict=True):
        assert mask is not None
        new = [[False, False, True, True]] * (len(labels) - 3)
        assert mask.tolist() == new + [[True] * 4] * 3
        assert set(labels[:-3]) <= {2, 3}
    replayed = {label for labels in seen.labels for label in labels[-3:]}
    assert replayed & {0, 1}
    assert all(row == [False] * (len(row) - 3) + [True] * 3 for row in seen.old)
    assert replayed & {2, 3}  # or nothing would ever raise a new class above an old one
    assert len(learner.memory) == 8


def test_rehearsal_moves_what_the_mask_protects(backbone: Backbone, digits: list[ImageSet]) -> None:
    rows = []
    for per_class in (0, 2):
        learner = Learner(small(memory={"per_class": per_class}), backbone)
        learner.learn(digits[0])
        before = learner.method.get_parameter("head.weight_KD").detach().clone()
        learner.learn(digits[1])
        rows.append(torch.equal(learner.method.get_parameter("head.weight_KD")[:2], before))
    assert rows == [True, False]


def test_unequal_tasks_are_in_the_results(tmp_path: Path) -> None:
    results, _ = shown(small(tasks=[6, 1, 3], method={"name": "ncm"}), tmp_path)
    assert [len(record["class_names"]) for record in results["tasks"]] == [6, 1, 3]
    assert results["config"]["tasks"] == [6, 1, 3]
    accuracies = results["accuracy_matrix"][-1]
    assert results["average_accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert results["overall_accuracy"] == pytest.approx((6 * accuracies[0] + accuracies[1] + 3 * accuracies[2]) / 10)


def test_a_memory_larger_than_the_data(tmp_path: Path) -> None:
    results, _ = shown(small(memory={"per_class": 1000}, tasks=2), tmp_path)
    assert results["memory_images"] == 60


@pytest.mark.parametrize(
    ("counts", "collapsed"),
    [
        ([[9, 7, 0, 0], [8, 8, 0, 0]], True),
        ([[9, 7, 0, 0], [0, 0, 8, 8]], False),  # each task its own: what diversified selection is for
        ([[900, 899, 1, 0], [900, 900, 0, 0]], True),  # the first steps touch more
        ([[8, 8], [8, 8]], False),  # nothing to choose from
        ([[9, 7, 0, 0]], None),  # one task may have no need of more
    ],
)
def test_a_collapsed_pool_is_said(counts: list[list[int]], collapsed: bool | None) -> None:
    lines: list[str] = []
    ui, done = QuietUi(Path("."), write=lines.append), nothing_done()
    for row in counts:
        done["learned"] = [{"images": sum(row) // 2}]
        done["statistics"]["train"].append({"prompts": row, "cosine": 0.5})
        _watch_pool(done, ui)
    assert done["collapsed"] is collapsed
    said = [f"warning: {text}" for text in done["warnings"]]
    assert lines == said
    assert len(said) == bool(collapsed)
    assert all(f"the pool has collapsed: 2 of its {len(counts[0])} prompts" in line for line in said)


def test_the_pool_can_be_seen(tmp_path: Path) -> None:
    results, _ = shown(small(method={"pool_size": 2}, tasks=2), tmp_path)
    pool = results["pool"]
    assert pool["collapsed"] is False
    assert [entry["counts"] for entry in pool["train"]] == results["prompt_selections"]["train"] == [[30, 30]] * 2
    assert [entry["entropy"] for entry in pool["test"]] == pytest.approx([1.0, 1.0])
    assert all(-1 <= entry["cosine"] <= 1 for entry in pool["train"] + pool["test"])
