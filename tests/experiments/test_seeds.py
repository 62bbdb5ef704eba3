"""train --seeds and --tensorboard as users run them."""

from __future__ import annotations

import functools
import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import refused, start, written

from promptcl.cli.train import seed_settings
from promptcl.errors import UserError

SMALL = (
    "train demo tasks=2 backbone.name=test_vit backbone.weights=random backbone.image_size=32 data.train_per_class=4 "
)
SMALL += "data.test_per_class=4 train.epochs=1 backbone.precision=auto --quiet"


@pytest.mark.slow
def test_seeds_make_a_run_each_and_a_summary_and_events(tmp_path: Path) -> None:
    result = start(*SMALL.split(), "--seeds", "3,1", "--out", "o", "--tensorboard", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    runs = [json.loads((tmp_path / "o" / f"seed{seed}" / "results.json").read_text()) for seed in (3, 1)]
    assert [run["config"]["seed"] for run in runs] == [3, 1]
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    values = [run["average_accuracy"] for run in runs]
    assert summary["seeds"] == [3, 1]
    assert summary["n"] == 2
    assert summary["average_accuracy"]["mean"] == pytest.approx(statistics.mean(values))
    assert summary["average_accuracy"]["std"] == pytest.approx(statistics.stdev(values))
    spread = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert result.stdout.splitlines()[-1].startswith(f"2 seeds: average accuracy {spread}, forgetting ")

    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = events.EventAccumulator(str(tmp_path / "o" / "seed1")).Reload()
    scalars = [(one.step, one.value) for one in board.Scalars("average_accuracy")]
    assert scalars == [(1, pytest.approx(runs[1]["tasks"][0]["average_accuracy"])), (2, pytest.approx(values[1]))]
    assert len(board.Scalars("accuracy/task 001")) == 2

    before = written(tmp_path / "o" / "seed3" / "results.json")
    again = start(*SMALL.split(), "--seeds", "3,1", "--out", "o", cwd=tmp_path)
    assert again.stdout == result.stdout.splitlines()[-1] + "\n"  # finished runs are kept
    assert written(tmp_path / "o" / "seed3" / "results.json") == before
    assert "a run with other settings" in refused(*SMALL.split(), "tasks=5", "--seeds", "3", "--out", "o", cwd=tmp_path)


@pytest.mark.parametrize("seeds", ["", "1,,2", "1,1", "1,01", "-1", "a", "1 2"])
def test_bad_seeds_are_refused(seeds: str) -> None:
    with pytest.raises(UserError, match=r"write e\.g\. --seeds 1,2,3"):
        seed_settings(seeds, [])


def test_seed_and_seeds_are_one_too_many(tmp_path: Path) -> None:
    assert seed_settings("2,10", ["tasks=2"]) == [["seed=2"], ["seed=10"]]
    assert seed_settings(None, ["seed=7"]) == [[]]
    assert "leave out seed=7" in refused("train", "demo", "seed=7", "--seeds", "1,2", cwd=tmp_path)


@pytest.mark.slow
def test_ctrl_c_and_resume_of_seeds_say_the_line_that_goes_on(tmp_path: Path) -> None:
    words = [*SMALL.removesuffix(" --quiet").split(), "train.epochs=400", "--seeds", "3,1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "promptcl", *words, "--quiet"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(tmp_path.glob("runs/*/seed3/config.yaml")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].splitlines()
    (folder,) = (path.relative_to(tmp_path) for path in (tmp_path / "runs").iterdir())
    line = f"{shlex.join(words)} --out {folder}"
    assert said == [f"go on with: promptcl {line}", "interrupted"]
    assert "it is the folder of --seeds; repeat the line" in refused("train", "--resume", str(folder), cwd=tmp_path)
