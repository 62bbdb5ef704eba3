"""A run that is interrupted anywhere goes on to the same results, and only with the settings it began with."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import Steps, Stop, make_config, run_quietly, same_state, timeless, written

from promptcl.errors import UserError
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.learner.learner import Learner

TRAIN = {"epochs": 2, "batch_size": 8, "checkpoint_steps": 2}


class StoppingUi(QuietUi):
    """Stops a run at its n-th step or evaluation."""

    def __init__(self, number: int) -> None:
        super().__init__(Path(), write=lambda line: None)
        self._steps = Steps(number)
        self._steps.stage(0, number)

    def step(self) -> None:
        self._steps.step()

    def evaluating(self, name: str) -> None:
        self.step()


BLURRY = {
    "scenario": "blurry",
    "online": True,
    "blurry": {"steps": 3, "evaluate_every": 2, "blur": 0.4},
    "train": {**TRAIN, "epochs": 1},
    "memory": {"per_class": 2, "store": True},
}
GAUSSIAN = {"micro_tasks": 5, "steps": 2, "sigma": 2.0, "evaluate_every": 2}
FREQUENCY = {"name": "l2p", "pool_size": 4, "top_k": 2, "diversify": "frequency"}
TWO_STAGES = {"name": "oneprompt", "layout": [[0, 2], [1, 3]], "outliers": "boundary", "outlier_epochs": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "moments"),
    [
        ({"method": {"name": "l2p", "pool_size": 4, "top_k": 2}}, (1, 5, 9)),
        ({"method": {"name": "ncm"}}, (1, 3)),
        ({"joint": True, "method": {"name": "linear"}, "train": {**TRAIN, "mask": False}}, (3, 18)),
        ({"method": {"name": "l2p_ridge", "pool_size": 4, "top_k": 2}}, (9,)),
        ({"method": {"name": "linear"}, "memory": {"per_class": 2, "store": True}}, (9, 16)),
        ({"method": {"name": "linear"}, "memory": {"per_class": 2}}, (9, 16)),
        ({"method": FREQUENCY}, (9, 14)),
        ({"scenario": "gaussian", "gaussian": GAUSSIAN}, (7, 12)),
        (BLURRY, (3, 6, 9)),
        ({"method": TWO_STAGES}, (3, 5, 8, 10)),
        ({"method": {"name": "dualprompt"}}, (9,)),
    ],
    ids=[
        *("l2p", "ncm", "joint", "ridge", "memory-store", "memory", "frequency", "gaussian", "blurry"),
        *("two-stages", "dualprompt"),
    ],
)
def test_a_run_goes_on_to_the_same_results(changes: dict[str, Any], moments: tuple[int, ...], tmp_path: Path) -> None:
    config = make_config(**{"tasks": 3, "train": TRAIN, "data": {"train_per_class": 6}, **changes})
    whole = run_quietly(config, tmp_path / "whole")
    for number in moments:
        out = tmp_path / f"stopped{number}"
        with pytest.raises(Stop):
            experiment.run(config, out, StoppingUi(number))
        assert not (out / "results.json").exists()
        assert timeless(run_quietly(config, out, resume=True)) == timeless(whole)
        assert timeless(json.loads((out / "results.json").read_text())) == timeless(whole)
        assert same_state(Learner.load(out / "learner"), Learner.load(tmp_path / "whole" / "learner"))
    assert timeless(run_quietly(config, tmp_path / "whole", resume=True)) == timeless(whole)  # nothing is left to do


def test_a_run_does_not_go_on_with_other_settings(tmp_path: Path) -> None:
    run_quietly(make_config(), tmp_path)
    with pytest.raises(UserError, match=r"is not what .* was learned with"):
        run_quietly(make_config(seed=8), tmp_path, resume=True)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match="holds the learner of another run; go on with that run"):
        run_quietly(make_config(seed=8), tmp_path)
    assert (tmp_path / "config.yaml").read_text() == before


class SlowUi(StoppingUi):
    """Stops a run at its n-th step, and takes a second before that."""

    def step(self) -> None:
        if self._slow:
            time.sleep(1)
        self._slow = False
        super().step()

    _slow = True


@pytest.mark.slow
def test_the_seconds_of_a_run_are_those_of_its_interrupted_task_too(tmp_path: Path) -> None:
    config = make_config(tasks=1, train=TRAIN)
    with pytest.raises(Stop):
        experiment.run(config, tmp_path, SlowUi(4))
    results = run_quietly(config, tmp_path, resume=True)
    (task,) = results["tasks"]
    assert task["train_seconds"] > 1
    assert results["seconds"] > task["train_seconds"] + task["eval_seconds"]


def test_the_results_of_a_finished_run_stay_as_they_are(tmp_path: Path) -> None:
    config = make_config(method={"name": "ncm"}, data={"train_per_class": 2, "test_per_class": 1})
    run_quietly(config, tmp_path)
    file = tmp_path / "results.json"
    old = {**json.loads(file.read_text()), "git_commit": "of-then", "versions": {"torch": "1.0"}}
    file.write_text(json.dumps(old))
    before = written(file)
    assert run_quietly(config, tmp_path, resume=True) == old
    assert written(file) == before
    file.write_text("{}")  # damaged: what was learned gives it again
    assert timeless(run_quietly(config, tmp_path, resume=True))["accuracy_matrix"] == old["accuracy_matrix"]
    assert json.loads(file.read_text())["git_commit"] != "of-then"


# A background job of a shell ignores Ctrl-C, and so would its children.
HEED = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "promptcl", "train", *map(str, words)]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_resume_does(tmp_path: Path) -> None:
    settings = ["data.train_per_class=30", "data.test_per_class=5", "train.epochs=40", "tasks=2"]
    settings += ["backbone.name=test_vit", "backbone.weights=random", "backbone.kwargs={}", "train.checkpoint_steps=2"]
    process = subprocess.Popen(
        command("demo", *settings, "--out", tmp_path / "my run", "--quiet"),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=HEED,
    )
    while process.poll() is None and not list(tmp_path.glob("*/learner/checkpoint/stage-0.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 130
    assert said == [f"go on with: promptcl train --resume '{tmp_path / 'my run'}'", "interrupted"]
    document = json.loads((tmp_path / "my run" / "learner" / "checkpoint" / "stage-0.json").read_text())
    assert document["done"] > 0
    refused = subprocess.run(command("demo", "--out", tmp_path / "my run"), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "write promptcl train --resume" in refused.stderr
    for words, expected in (
        (["seed=1", "--resume", str(tmp_path / "my run")], "goes on with the settings it began with"),
        (["--resume", str(tmp_path)], "there is no config.yaml in it"),
    ):
        refused = subprocess.run(command(*words), capture_output=True, text=True)
        assert refused.returncode == 2
        assert expected in refused.stderr
    assert os.listdir(tmp_path) == ["my run"]
