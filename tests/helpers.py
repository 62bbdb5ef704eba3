"""What several tests need: a small config, digits as tasks and as files, and the command, here or in a new process."""

from __future__ import annotations

import io
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import forked
import pytest
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

import promptcl
from promptcl.backbone import Backbone
from promptcl.cli.main import app
from promptcl.config.schema import Config
from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split
from promptcl.data.stream import class_incremental
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.learner.learner import Learner
from promptcl.methods._base import Batch
from promptcl.store import files
from promptcl.store.folder import KIND
from promptcl.training import Silent

ROOT = Path(__file__).parents[1]
# For new processes: one thread each, the package under test, and lines as wide as the tests expect.
SOURCES = str(Path(promptcl.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONUTF8": "1"}
# Settings for the command: a random ViT of 0.4 million numbers, which learns nothing useful and is fast.
TINY_VIT = ["backbone.name=test_vit", "backbone.weights=random", "backbone.image_size=32", "device=cpu"]
SMALL = TINY_VIT
TRAINED = [*TINY_VIT, "train.epochs=1", "train.min_steps=5"]
"""For recipes that train."""

REMEMBERS: dict[str, dict[str, Any]] = {
    name: {"memory": {"per_class": 4, "store": True}} for name in ("er", "gdumb", "derpp", "bic", "co2l")
}
"""Settings beside those of the method, where a memory is a part of it, found again by who continues."""

_SETTINGS: dict[str, Any] = {
    "tasks": 2,
    "seed": 1,
    "backbone": {"name": "test_vit", "weights": "random", "image_size": 32},
    "data": {"name": "mnist5k", "train_per_class": 8, "test_per_class": 4, "crop_scale": [0.5, 1.0]},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
    "eval": {"batch_size": 16},
    "method": {"name": "l2p", "pool_size": 4, "top_k": 2, "prompt_length": 2},
}


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`settings` with `changes`: sections are merged, but a method that is named takes the place of another."""
    result = dict(settings)
    for key, value in changes.items():
        whole = not isinstance(value, dict) or (key == "method" and "name" in value)
        result[key] = value if whole else {**settings.get(key, {}), **value}
    return result


def make_config(**changes: Any) -> Config:
    """A config that trains L2P on a few digits with a small random ViT in a second, with changes."""
    return Config.model_validate(merged(_SETTINGS, changes))


def digit_tasks(per_class: int) -> list[ImageSet]:
    """Real digits in five tasks: 0 and 1, 2 and 3, and so on, with so many images a class."""
    split = load_split(make_config(data={"train_per_class": per_class}).data)
    return [task.train for task in class_incremental(split, 5, "official", 0)]


def write_folders(images: ImageSet, folder: Path) -> Path:
    """Write grey images as PNG files into a folder for each class."""
    for i, label in enumerate(images.labels):
        file = folder / images.classes[label] / f"{i:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.image(i)[0].numpy()).save(file)
    return folder


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(value: int, kind: str = "png") -> bytes:
    """The bytes of a file with a grey image of 4 x 4."""
    return encoded(Image.new("L", (4, 4), value), kind)


def call(*words: object, data: bytes | None = None) -> Result:
    """The command in this process; `data` is what it reads from stdin."""
    return CliRunner().invoke(app, [str(word) for word in words], input=data)


def good(*words: object, data: bytes | None = None) -> str:
    """What the command prints when it succeeds."""
    result = call(*words, data=data)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def start(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, forked: one that has yet to import torch takes seconds more."""
    return forked.command([str(word) for word in words], cwd, ENVIRONMENT)


def done(*words: object, cwd: Path | None = None) -> str:
    """What the command prints when it succeeds, in a process of its own."""
    result = start(*words, cwd=cwd or Path.cwd())
    assert result.returncode == 0, result.stderr
    return result.stdout


def written(file: Path) -> tuple[int, int]:
    """Which file this is and when it was written; the rest of its `stat` changes when it is read."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


def _written(folder: Path) -> list[Path]:
    """All that is below a folder, but for what Python keeps of a file that it has compiled."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def refused(*words: object, cwd: Path) -> str:
    """The one line on stderr of a command in `cwd` that fails as it should and leaves nothing behind."""
    before = _written(cwd)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = call(*words)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stdout == ""
    assert _written(cwd) == before
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def run_quietly(config: Config, out: Path, resume: bool = False) -> dict[str, Any]:
    """The results of a run that prints nothing."""
    return experiment.run(config, out, QuietUi(out, write=lambda line: None), resume)


def timeless(results: Any) -> Any:
    """Results without what a clock says, and without the commit, which may change while tests run."""
    if isinstance(results, dict):
        return {key: timeless(value) for key, value in results.items() if "second" not in key and key != "git_commit"}
    return [timeless(value) for value in results] if isinstance(results, list) else results


class Stop(Exception):
    """What a test raises where a process might be killed."""


class Steps(Silent):
    """A Progress that keeps what it is told, and raises an exception at a step, counted over all stages from 1."""

    def __init__(self, stop_at: int | None = None, error: type[BaseException] = Stop) -> None:
        self.stages: list[tuple[int, int]] = []
        """Number and steps of each stage."""
        self.done: list[int] = []
        """Steps of each stage that were done."""
        self._stop_at, self._error = stop_at, error

    def stage(self, number: int, steps: int) -> None:
        self.stages.append((number, steps))
        self.done.append(0)

    def step(self) -> None:
        self.done[-1] += 1
        if sum(self.done) == self._stop_at:
            raise self._error


class Seen:
    """Records what a learner's method is given to train on."""

    def __init__(self, learner: Learner) -> None:
        self.masks: list[Tensor | None] = []
        self.labels: list[list[int]] = []
        self.old: list[list[bool]] = []
        loss = learner.method.loss

        def record(backbone: Backbone, batch: Batch) -> Tensor:
            self.masks.append(batch.allowed_BK)
            self.labels.append(batch.labels_B.tolist())
            self.old.append(batch.old_B.tolist())
            return loss(backbone, batch)

        learner.method.loss = record  # type: ignore[method-assign]


def same_state(one: Learner, other: Learner) -> bool:
    """Whether two learners hold the same numbers, bit for bit."""
    left, right = one.method.state_dict(), other.method.state_dict()
    return left.keys() == right.keys() and all(left[key].equal(right[key]) for key in left)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of learner.json and give it the right checksum: what a forger would do."""
    pair = files.read_pair(folder / "learner.json", KIND)
    files.write_pair(folder / "learner.json", {**pair.document, **changes}, pair.tensors)
