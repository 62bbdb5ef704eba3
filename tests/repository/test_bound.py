"""No published result is better than its own forgetting allows: A <= 100 - (1 - 1/T) F over T tasks.

Forgetting is the mean over the first T - 1 tasks of best minus last, and no accuracy is above 100; so the sum of the
last accuracies of these tasks is at most (T - 1) (100 - F). A row of a published table breaks it: 33.61 with 86.87.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import ROOT

from promptcl.experiments.metrics import average_accuracy, forgetting

RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))


def bound(forgotten: float, tasks: int) -> float:
    """The largest average accuracy, in percent, that goes with so much forgetting."""
    return 100 - (1 - 1 / tasks) * forgotten


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: str(file.relative_to(ROOT / "benchmarks" / "results")))
def test_accuracy_and_forgetting_can_both_be(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    runs = found if isinstance(found, list) else [found]
    for run in (run for run in runs if isinstance(run, dict)):
        accuracy, forgotten, tasks = (run.get(key) for key in ("average_accuracy", "forgetting", "tasks"))
        if accuracy is None or forgotten is None or not isinstance(tasks, list):
            continue  # another kind of file, a stream of one test set, or a single task
        assert accuracy <= bound(forgotten, len(tasks)) + 1e-6


def test_results_are_found() -> None:
    assert len(RESULTS) > 20


def test_a_row_that_cannot_be() -> None:
    assert bound(86.87, 10) == pytest.approx(21.8, abs=0.02)
    assert bound(86.87, 10) < 33.61
    worst = [[100.0], [0.0, 100.0], [0.0, 0.0, 100.0]]
    found = forgetting(worst)
    assert found is not None
    assert average_accuracy(worst) == pytest.approx(bound(found, 3))  # the bound is reached
