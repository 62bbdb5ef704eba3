"""A run over all tasks, end to end on real digits with a small timm ViT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import make_config, run_quietly, timeless

from promptcl.errors import UserError


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
    [({"name": "ncm"}, {}), ({"name": "linear"}, {}), ({"name": "linear"}, {"mask": False}), ({"name": "joint"}, {})],
)
def test_baselines(tmp_path: Path, method: dict[str, Any], train: dict[str, Any]) -> None:
    results = run_quietly(make_config(method=method, train=train, data={"augment": "none"}), tmp_path)
    assert 0 <= results["average_accuracy"] <= 100
    assert results["prompt_selections"] is None
    assert (results["forgetting"] is None) == (method["name"] == "joint")
    assert results["trained_parameters"] == (0 if method["name"] == "ncm" else 10 * 65)


def test_a_loss_that_explodes_is_an_error_and_leaves_no_results(tmp_path: Path) -> None:
    config = make_config(train={"lr": 1e30, "optimizer": "sgd", "clip_norm": None, "epochs": 3})
    with pytest.raises(UserError, match=r"loss became .* lower the learning rate"):
        run_quietly(config, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()
