"""SIGKILL of `promptcl train` in each stage of a task that has a past: what goes on ends in the same bits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from forked import in_child
from helpers import TINY_VIT, call, same_state, start, timeless

from promptcl.learner.learner import Learner
from promptcl.methods._base import Stage
from promptcl.training import Silent, Trainer

# The third task is the first one whose teacher is corrected (bic) and whose stored logits differ in length (derpp).
LATE = 2
SETTINGS = ["data.name=mnist5k", "data.train_per_class=6", "data.test_per_class=1", "data.workers=0", "tasks=3"]
SETTINGS += ["train.epochs=2", "train.batch_size=8", "train.schedule=constant", "train.milestones=[]"]
SETTINGS += [
    *TINY_VIT,
    "train.checkpoint_steps=2",
    "train.checkpoint_seconds=null",
    "memory.per_class=4",
    "method.share=1",
    "--quiet",
]


class Killed(Silent):
    """Ends this process at a step of a stage, counted from 1, as the system would end it; 0: at the last one."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stage(self, number: int, steps: int) -> None:
        self.left = self.at or steps

    def step(self) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def train(out: Path, words: list[str], number: int | None = None, step: int = 0) -> str:
    """Begin or go on in `out`, and be killed at a step of stage `number` of the late task; `done` or `killed`."""

    def work() -> None:
        Trainer.run = watched  # type: ignore[method-assign]  # of this process, which ends here
        result = call("train", *(["--resume", out, "--quiet"] if out.exists() else [*words, "--out", out]))
        assert result.exit_code == 0, result.output

    def watched(self: Trainer, stage: Stage, number: int) -> None:
        if (self.task, number) == (LATE, at):
            self.progress = Killed(step)
        run(self, stage, number)

    at, run = number, Trainer.run
    return in_child(work)


def done(out: Path, stage: int) -> int:
    """Steps of a stage that its checkpoint has."""
    path = out / "learner" / "checkpoint" / f"stage-{stage}.json"
    return int(json.loads(path.read_text())["done"]) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stages"),
    [
        (["derpp"], 1),
        (["bic", "method.bias_steps=5", "method.validation=0.25"], 2),
        (["co2l", "method.head_epochs=5", "method.head_batch=64"], 2),
    ],
    ids=["derpp", "bic", "co2l"],
)
@pytest.mark.usefixtures("digits")  # parsed before the first fork, and so once
def test_killed_in_every_stage(method: list[str], stages: int, tmp_path: Path) -> None:
    """One run is killed between two stages, between two checkpoints and at the last step of each stage, one by one."""
    whole, parts, words = tmp_path / "whole", tmp_path / "parts", [*method, *SETTINGS]
    assert train(whole, words) == "done"
    for stage in range(stages):
        for step in (3, 0) if stage == 0 else (1, 3, 0):
            assert train(parts, words, stage, step) == "killed"
            assert not (parts / "results.json").exists()
            assert done(parts, stage) == step // 2 * 2 if step else done(parts, stage) >= 2
    end = start("train", "--resume", parts, "--quiet", cwd=tmp_path)  # in a process that has seen nothing of it
    assert end.returncode == 0, end.stderr
    one, other = Learner.load(parts / "learner"), Learner.load(whole / "learner")
    assert same_state(one, other)
    kept, wanted = (learner.memory.tensors([], images=False) for learner in (one, other))
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(value.nan_to_num(), wanted[name].nan_to_num()) for name, value in kept.items())
    found = [timeless(json.loads((out / "results.json").read_text())) for out in (parts, whole)]
    assert found[0] == found[1]
