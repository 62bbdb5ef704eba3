"""How often test images take the prompts of their own task, in the results of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import make_config, run_quietly

HIDE = {"name": "hide", "align_epochs": 1, "align_samples": 16, "layers": [0], "length": 2}


@pytest.mark.parametrize("method", [{"name": "dualprompt"}, HIDE], ids=lambda method: str(method["name"]))
def test_it_is_the_share_of_the_last_test(method: dict[str, Any], tmp_path: Path) -> None:
    results = run_quietly(make_config(method=method, tasks=3), tmp_path / "run")
    counts = [one["prompts"] for one in results["statistics"]["test"]]
    assert [len(row) for row in counts] == [3, 3, 3]
    own = 100 * sum(row[task] for task, row in enumerate(counts)) / sum(map(sum, counts))
    assert results["task_inference"] == pytest.approx(own)
    assert 0 < own <= 100


@pytest.mark.parametrize(
    "changes", [{"method": {"name": "ncm"}}, {"method": {"name": "dualprompt"}, "joint": True}], ids=str
)
def test_it_is_null_where_it_means_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    assert run_quietly(make_config(**changes), tmp_path / "run")["task_inference"] is None
