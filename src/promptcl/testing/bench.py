"""What the checks of a method share: small learners of it, images of digits, a ViT, and other processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Config
from promptcl.data import ImageSet, load_split
from promptcl.learner import Learner
from promptcl.methods._base import Method, load_method
from promptcl.recipes import load_config
from promptcl.training import Silent


def named(method: type[Method]) -> str:
    """Register the class, and return a name under which `load_method` finds it."""
    name = f"promptcl_checked.{method.__module__.replace('.', '_')}_{method.__name__}"
    for key in ("promptcl_checked", name):
        sys.modules.setdefault(key, ModuleType(key))
    sys.modules[name].__dict__["Model"] = method
    return name


class Stop(Exception):
    """Raised in a check where a process would be killed."""


class StopAt(Silent):
    """Stops the training after a number of stages and steps, as if the process were killed."""

    def __init__(self, event: int) -> None:
        """Stop after `event` stages and steps."""
        self.left = event

    def stage(self, number: int, steps: int) -> None:
        """Count a stage like a step."""
        self.step()

    def step(self) -> None:
        """Count one step; raises Stop when there were enough."""
        self.left -= 1
        if self.left < 0:
            raise Stop


class Count(Silent):
    """Counts stages and steps."""

    events = 0
    """Stages and steps so far, added up."""

    def stage(self, number: int, steps: int) -> None:
        """Count a stage."""
        self.events += 1

    def step(self) -> None:
        """Count a step."""
        self.events += 1


class Bench:
    """The method under test, digits to learn, and a ViT that all learners share."""

    def __init__(self, name: str, options: dict[str, Any], folder: Path) -> None:
        """`name` as of `method.name`, its `options`, and a `folder` to write to."""
        self.name, self.options, self.folder = name, options, folder
        demo = load_config("demo", ["data.train_per_class=10", "data.test_per_class=10"])
        self.demo, split = demo, load_split(demo.data)
        self.train = [split.train.of_classes(pair) for pair in ("01", "67")]
        self.test = [split.test.of_classes(pair) for pair in ("01", "67")]
        self.backbone = Backbone.create(demo.backbone)

    def config(self, **settings: Any) -> Config:
        """A small configuration of the method; settings of a section are merged."""
        train = {"epochs": 1, "batch_size": 8, "checkpoint_steps": 1, "lr": 0.005, **settings.pop("train", {})}
        data = {"augment": "crop", "crop_scale": (0.9, 1.0), "hflip": False, "eval_crop": 1.0}
        method = {"name": self.name, **self.options}
        return Config.model_validate(
            {
                "backbone": self.demo.backbone,
                "data": data,
                "train": train,
                "method": method,
                "device": "cpu",
                **settings,
            }
        )

    def learner(self, **settings: Any) -> Learner:
        """A new learner of the method."""
        return Learner(self.config(**settings), self.backbone)

    def learned(self, *tasks: ImageSet, **settings: Any) -> Learner:
        """A learner that has learned `tasks`, by default both pairs of digits."""
        learner = self.learner(**settings)
        for images in tasks or self.train:
            learner.learn(images)
        return learner

    def answers(self, learner: Learner, images: ImageSet | None = None) -> Tensor:
        """Logits [N, K] for the test images of both tasks, or for `images`."""
        sets = [one for one in self.test if set(one.classes) <= set(learner.classes)] if images is None else [images]
        return torch.cat([learner.logits(one, learner.labels(one)) for one in sets])

    def elsewhere(self, job: str, count: int = 1) -> None:
        """Run `job`, a function of `promptcl.testing.checks`, in `count` other processes that form a group."""
        model = load_method(self.name)
        home = sys.modules[model.__module__]
        spec = {
            "path": [os.getcwd(), *sys.path],
            "file": getattr(home, "__file__", None),
            "module": model.__module__,
            "class": model.__qualname__,
            **{"name": self.name, "options": self.options, "folder": str(self.folder), "job": job},
        }
        file = self.folder / "job.json"
        file.write_bytes(json.dumps(spec).encode())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for number in range(count):
            group = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            more = {**group, **where} if count > 1 else {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "promptcl.testing", str(file)]
            started.append(subprocess.Popen(command, env={**os.environ, **more}, stderr=subprocess.PIPE, text=True))
        said = [process.communicate(timeout=300)[1] for process in started]
        assert not any(process.returncode for process in started), f"in {count} other processes: {said[0][-2000:]}"
