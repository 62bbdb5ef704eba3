"""Two tasks in two processes, in one, and as the tasks of `train`: the same learner; and the table made of it."""

from __future__ import annotations

import json
from pathlib import Path

import grow_cifar100 as grow
import pytest
from helpers import SMALL, done

from promptcl.config.schema import DataConfig
from promptcl.data.splits import load_split


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0 to 3 in two tasks of two."""
    root: Path = tmp_path_factory.mktemp("tasks")
    split = load_split(DataConfig(name="mnist5k", train_per_class=12, test_per_class=5))
    names = ["0", "1", "2", "3"]
    grow.write_tasks(split.train.of_classes(names), split.test.of_classes(names), root, 2)
    return root


@pytest.mark.slow
def test_new_processes_one_process_and_train_end_with_the_same_bits(
    tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grow, "promptcl", done)
    found = grow.compare(tasks, "grow-demo", SMALL, ["command", "python", "train"])
    assert found["equal"] == dict.fromkeys(("classes", "state", "logits", "accuracies"), True)
    assert found["ways"]["command"]["classes"] == ["0", "1", "2", "3"]
    first, second = found["ways"]["command"]["accuracies"]
    assert (len(first), len(second)) == (1, 2)
    assert min(first) > 60  # chance is 50


@pytest.mark.slow
def test_another_seed_is_not_equal(tasks: Path) -> None:
    """What the comparison is worth: it sees one changed setting."""
    drawn = [*SMALL, "method.name=ranpac", "method.width=30"]  # `grow` itself draws nothing
    folders = [grow.by_python(tasks, "grow-demo", [*drawn, f"seed={seed}"])[0] for seed in (1, 2)]
    one, other = (grow.fingerprint(folder, tasks) for folder in folders)
    assert one["classes"] == other["classes"]
    assert one["state"] != other["state"]
    assert one["logits"] != other["logits"]


def test_the_guide_shows_the_measured_table() -> None:
    results = json.loads(grow.RESULTS.read_text(encoding="utf-8"))
    shown = grow.TABLE.findall(grow.GUIDE.read_text(encoding="utf-8"))
    assert shown == [grow.table(results)], "run: python benchmarks/grow_cifar100.py --table"
    assert any(row["equal"] for row in results["rows"])
    assert all(all(row["equal"].values()) for row in results["rows"] if row["equal"])
