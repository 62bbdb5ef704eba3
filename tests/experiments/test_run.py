"""A run over all tasks, end to end on real digits with a small timm ViT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import make_config, run_quietly, timeless

from promptcl.errors import UserError
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.learner.learner import Learner


@pytest.mark.slow
def test_results_say_what_they_promise_and_repeat_to_the_last_digit(tmp_path: Path) -> None:
    config = make_config(tasks=5)
    first = run_quietly(config, tmp_path / "a")
    written = json.loads((tmp_path / "a" / "results.json").read_text())
    assert written == first
    matrix = written["accuracy_matrix"]
    assert len(matrix) == 5
    assert all((matrix[t][i] is None) == (i > t) for t in range(5) for i in range(5))
    assert written["average_accuracy"] == pytest.approx(sum(matrix[4]) / 5)
    assert written["trained_parameters"] == 4 * 2 * 64 + 4 * 64 + 10 * 65
    assert [sum(row) for row in written["prompt_selections"]["train"]] == [16 * 2] * 5
    assert [sum(row) for row in written["prompt_selections"]["test"]] == [8 * 2] * 5
    assert len(written["backbone"]["sha256"]) == 64
    assert written["config"]["method"]["pool_size"] == 4
    assert {"torch", "timm", "promptcl"} <= set(written["versions"])
    for record in written["tasks"]:
        assert record["train_images_per_second"] > 0
        assert record["eval_seconds"] > 0
    again = run_quietly(config, tmp_path / "b")
    assert timeless(again) == timeless(first)
    other = run_quietly(make_config(tasks=5, seed=2), tmp_path / "c")
    assert timeless(other)["accuracy_matrix"] != timeless(first)["accuracy_matrix"] or (
        other["prompt_selections"] != first["prompt_selections"]
    )


@pytest.mark.parametrize(
    ("method", "train"),
    [({"name": "ncm"}, {}), ({"name": "linear"}, {}), ({"name": "linear"}, {"mask": False})],
)
def test_baselines(tmp_path: Path, method: dict[str, Any], train: dict[str, Any]) -> None:
    results = run_quietly(make_config(method=method, train=train, data={"augment": "none"}), tmp_path)
    assert 0 <= results["average_accuracy"] <= 100
    assert results["prompt_selections"] is None
    assert results["pool"] is None
    assert results["statistics"] == {"train": [{}, {}], "test": [{}, {}]}
    assert results["forgetting"] is not None
    assert results["trained_parameters"] == (0 if method["name"] == "ncm" else 10 * 65)


@pytest.mark.parametrize("name", ["l2p", "linear", "ncm"])
def test_all_tasks_at_once(name: str, tmp_path: Path) -> None:
    """Learned as one task, tested on each: the last row of the matrix is the only one."""
    config = make_config(joint=True, tasks=5, method={"name": name}, train={"mask": False}, data={"test_per_class": 2})
    results = run_quietly(config, tmp_path)
    (record,) = results["tasks"]
    assert record["name"] == "all tasks"
    assert record["classes"] == 10
    assert record["train_images"] == 80
    assert record["eval_images"] == 20
    matrix = results["accuracy_matrix"]
    assert [len(row) for row in matrix] == [5] * 5
    assert matrix[:4] == [[None] * 5] * 4
    assert matrix[4] == record["accuracies"]
    assert None not in matrix[4]
    assert results["average_accuracy"] == pytest.approx(sum(record["accuracies"]) / 5)
    assert results["forgetting"] is results["learning_accuracy"] is results["final_accuracy"] is None
    assert results["average_incremental_accuracy"] is record["forgetting"] is None
    assert {part: len(rows) for part, rows in results["statistics"].items()} == {"train": 1, "test": 5}
    assert (results["pool"] is None) == (name != "l2p")
    learner = Learner.load(tmp_path / "learner")
    assert [len(task.images) for task in learner.history] == [10]


def test_statistics_are_kept_by_the_names_that_a_method_gives_them(tmp_path: Path) -> None:
    results = run_quietly(make_config(), tmp_path)
    for part, rows in results["statistics"].items():
        assert [set(row) for row in rows] == [{"prompts", "cosine"}] * 2
        assert [row["prompts"] for row in rows] == results["prompt_selections"][part]
        assert [row["cosine"] for row in rows] == [entry["cosine"] for entry in results["pool"][part]]
    assert set(results["pool"]) == {"collapsed", "train", "test"}


@pytest.mark.parametrize(("name", "warned"), [("ncm", True), ("l2p_ridge", True), ("linear", False)])
def test_a_memory_that_is_never_read_ends_with_a_warning(name: str, warned: bool, tmp_path: Path) -> None:
    config = make_config(method={"name": name}, memory={"per_class": 2})
    lines: list[str] = []
    results = experiment.run(config, tmp_path, QuietUi(tmp_path, write=lines.append))
    said = f"method.name={name} never replays images: memory.per_class did nothing"
    assert results["warnings"] == ([said] if warned else [])
    assert [line for line in lines if line.startswith("warning")] == ([f"warning: {said}"] if warned else [])
    assert results["memory_images"] == 20


def test_a_loss_that_explodes_is_an_error_and_leaves_no_results(tmp_path: Path) -> None:
    config = make_config(train={"lr": 1e30, "optimizer": "sgd", "clip_norm": None, "epochs": 3})
    with pytest.raises(UserError, match=r"loss became .* lower the learning rate"):
        run_quietly(config, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()
