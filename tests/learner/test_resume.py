"""Training that is interrupted goes on bit for bit, and only with what was interrupted."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import digit_tasks, make_config, run_quietly, same_state, timeless

from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.learner.learner import Learner
from promptcl.store import files

TRAIN = {"epochs": 2, "batch_size": 8, "checkpoint_steps": 2}


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def digits() -> list[ImageSet]:
    """Enough for four steps an epoch."""
    return digit_tasks(14)


def stop_at(number: int) -> Callable[[], None]:
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stop

    return step


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"optimizer": "adam"}},
        {"train": {"optimizer": "sgd", "schedule": "cosine", "query_view": "clean"}},
        {"train": {"drop_last": True}, "data": {"augment": "none"}},
        {"method": {"name": "l2p_ridge", "pool_size": 4, "top_k": 2, "prompt_length": 2}},
        {"method": {"name": "linear", "head_init": "uniform"}},
    ],
    ids=["adam", "sgd-cosine", "drop_last", "l2p_ridge", "linear"],
)
def test_interrupted_at_any_step(
    changes: dict[str, Any], backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    config = make_config(**{**changes, "train": {**TRAIN, **changes.get("train", {})}})
    start = Learner(config, backbone)
    if config.method["name"] != "l2p_ridge":  # which trains in its first task only
        start.learn(digits[0])
    before = list(start.classes)
    start.save(tmp_path / "start")
    record = start.learn(digits[1])
    steps = 2 * start.batches.steps_per_epoch(len(digits[1]))
    assert steps >= 6
    for number in range(1, steps + 1) if changes == {"train": {"optimizer": "adam"}} else (1, 4, steps):
        folder = tmp_path / f"stopped{number}"
        shutil.copytree(tmp_path / "start", folder)
        for again in (number, min(steps, number + 2)):  # interrupted twice; steps done before are reported again
            with pytest.raises(Stop):
                Learner.load(folder, backbone=backbone).learn(digits[1], stop_at(again), checkpoint=folder)
        assert (folder / "checkpoint").exists() == (min(steps, number + 2) > 2)
        assert Learner.load(folder, backbone=backbone).classes == before
        parts = Learner.load(folder, backbone=backbone)
        told: list[int] = []
        resumed = parts.learn(digits[1], lambda told=told: told.append(1), checkpoint=folder)  # type: ignore[misc]
        assert len(told) == steps
        assert same_state(parts, start)
        assert resumed.selections == record.selections
        assert resumed.images == record.images
        parts.save(folder)
        assert not (folder / "checkpoint").exists()


def test_interrupted_after_training(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """Killed between the last step and the save, nothing is trained again."""
    whole = Learner(make_config(train=TRAIN), backbone)
    whole.save(tmp_path)
    whole.learn(digits[0], checkpoint=tmp_path)
    parts, steps = Learner.load(tmp_path, backbone=backbone), 2 * whole.batches.steps_per_epoch(len(digits[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", None)  # a step would fail
        parts.learn(digits[0], checkpoint=tmp_path)
    assert same_state(parts, whole)
    assert steps > 2


@pytest.fixture
def interrupted(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> Path:
    learner = Learner(make_config(train=TRAIN), backbone)
    learner.save(tmp_path / "store")
    with pytest.raises(Stop):
        learner.learn(digits[0], stop_at(5), checkpoint=tmp_path / "store")
    return tmp_path / "store"


def test_other_images_or_settings_do_not_go_on(interrupted: Path, backbone: Backbone, digits: list[ImageSet]) -> None:
    with pytest.raises(UserError, match=r"interrupted in .* with other images: repeat what was interrupted, or delete"):
        Learner.load(interrupted, backbone=backbone).learn(digits[1], checkpoint=interrupted)
    fewer = digits[0].select(range(len(digits[0]) - 1))
    with pytest.raises(UserError, match="with other images"):
        Learner.load(interrupted, backbone=backbone).learn(fewer, checkpoint=interrupted)
    with pytest.raises(UserError, match="with other settings"):
        Learner.load(interrupted, ["train.lr=1"], backbone).learn(digits[0], checkpoint=interrupted)
    Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)


def test_a_checkpoint_of_an_older_store_is_ignored(
    interrupted: Path, backbone: Backbone, digits: list[ImageSet]
) -> None:
    kept = interrupted.with_name("kept")
    shutil.copytree(interrupted / "checkpoint", kept)
    learner = Learner.load(interrupted, backbone=backbone)
    learner.learn(digits[1])
    learner.save(interrupted)
    shutil.copytree(kept, interrupted / "checkpoint")
    learner.learn(digits[2], checkpoint=interrupted)
    whole = Learner(make_config(train=TRAIN), backbone)
    whole.learn(digits[1])
    whole.learn(digits[2])
    assert same_state(learner, whole)


def test_a_damaged_checkpoint_says_what_to_do(interrupted: Path, backbone: Backbone, digits: list[ImageSet]) -> None:
    for path in (interrupted / "checkpoint").iterdir():
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:200] + b"~" + whole[201:]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="delete this folder to learn what was interrupted from its start"):
                Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)
        path.write_bytes(whole)
    pair = files.read_pair(interrupted / "checkpoint" / "checkpoint.json", files.Kind("", 1, ""))
    path = interrupted / "checkpoint" / "checkpoint.json"
    oddities: tuple[dict[str, object], ...] = (
        {"groups": []},
        {"done": "x"},
        {"schedule": 3, "done": None},
        {"seconds": []},
    )
    for odd in oddities:
        files.write_pair(path, {**pair.document, **odd}, pair.tensors)
        with pytest.raises(UserError):
            Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)
    files.write_pair(path, pair.document, {**pair.tensors, "loss": torch.zeros(3)})
    with pytest.raises(UserError):
        Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)


def test_a_learner_that_was_never_saved_has_no_checkpoints(
    backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="save this one there before it learns"):
        Learner(make_config(), backbone).learn(digits[0], checkpoint=tmp_path)


class StoppingUi(QuietUi):
    """Stops a run at its n-th step or evaluation."""

    def __init__(self, number: int) -> None:
        super().__init__(Path(), write=lambda line: None)
        self.step = stop_at(number)  # type: ignore[method-assign]

    def evaluating(self, name: str) -> None:
        self.step()


GAUSSIAN = {"micro_tasks": 5, "steps": 2, "sigma": 2.0, "evaluate_every": 2}
FREQUENCY = {"name": "l2p", "pool_size": 4, "top_k": 2, "diversify": "frequency"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "moments"),
    [
        ({"method": {"name": "l2p", "pool_size": 4, "top_k": 2}}, (1, 5, 9)),
        ({"method": {"name": "ncm"}}, (1, 3)),
        ({"method": {"name": "joint"}}, (1, 3)),
        ({"method": {"name": "l2p_ridge", "pool_size": 4, "top_k": 2}}, (9,)),
        ({"method": {"name": "linear"}, "memory": {"per_class": 2, "store": True}}, (9, 16)),
        ({"method": {"name": "linear"}, "memory": {"per_class": 2}}, (9, 16)),
        ({"method": FREQUENCY}, (9, 14)),
        ({"scenario": "gaussian", "gaussian": GAUSSIAN}, (7, 12)),
    ],
    ids=["l2p", "ncm", "joint", "ridge", "memory-store", "memory", "frequency", "gaussian"],
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
    with pytest.raises(UserError, match="does not descend from"):
        run_quietly(make_config(), tmp_path)


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
    while process.poll() is None and not list(tmp_path.glob("*/learner/checkpoint/checkpoint.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 130
    assert said == [f"go on with: promptcl train --resume '{tmp_path / 'my run'}'", "interrupted"]
    document = json.loads((tmp_path / "my run" / "learner" / "checkpoint" / "checkpoint.json").read_text())
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
