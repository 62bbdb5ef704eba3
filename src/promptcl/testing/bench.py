"""What the checks of a method work with: small learners of it, digits, two ViTs, and other processes."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Config
from promptcl.config.schema import BackboneConfig
from promptcl.data import ImageSet, load_split
from promptcl.learner import Learner
from promptcl.methods._base import Method, load_method
from promptcl.recipes import load_config
from promptcl.testing import starter
from promptcl.training import Silent

_PAIRS = ("01", "67")  # digits of the two tasks
_LIMIT = 300  # seconds that other processes may take


def named(method: type[Method], name: str | None = None) -> str:
    """A name under which `load_method` finds the class."""
    name = name or f"promptcl_checked.{method.__module__.replace('.', '_')}_{method.__name__}"
    for key in ("promptcl_checked", name):
        sys.modules.setdefault(key, ModuleType(key))
    sys.modules[name].__dict__["Model"] = method
    return name


class Stop(Exception):
    """Stands for a process that is killed."""


class StopAt(Silent):
    """Stops the training when so many stages and steps have begun."""

    def __init__(self, event: int) -> None:
        """Let `event` stages and steps begin."""
        self.left = event

    def stage(self, number: int, steps: int) -> None:
        """A stage counts like a step."""
        self.step()

    def step(self) -> None:
        """Count it; raises Stop where there were enough."""
        self.left -= 1
        if self.left < 0:
            raise Stop


class Count(Silent):
    """Counts stages and steps."""

    events = 0
    """Both together."""

    def stage(self, number: int, steps: int) -> None:
        """One more."""
        self.events += 1

    def step(self) -> None:
        """One more."""
        self.events += 1


class Bench:
    """The method under test, two tasks of digits, and the ViTs that all learners share.

    Most checks take a ViT of random values, which costs next to nothing; what has to tell digits apart takes the small
    one inside the package.
    """

    def __init__(
        self, name: str, options: dict[str, Any], folder: Path, settings: Mapping[str, Any] | None = None
    ) -> None:
        """`name` as of `method.name`, its `options`, a `folder` to write to, and `settings` of other sections."""
        self.name, self.options, self.folder, self.settings = name, options, folder, dict(settings or {})
        self.train, self.test = _digits(folder)
        self.random = BackboneConfig(name="test_vit", weights="random", image_size=32)
        self.backbone = Backbone.create(self.random)
        self.able = load_config("demo").backbone

    @cached_property
    def able_backbone(self) -> Backbone:
        """The ViT that knows digits."""
        return Backbone.create(self.able)

    def config(self, backbone: BackboneConfig, **settings: Any) -> Config:
        """A small configuration of the method, with other `settings`; those of `train` are merged."""
        own = {**self.settings.get("train", {}), **settings.pop("train", {})}
        train = {"epochs": 1, "batch_size": 6, "checkpoint_steps": 1, "lr": 0.005, **own}
        data = {"augment": "crop", "crop_scale": (0.9, 1.0), "hflip": False, "eval_crop": 1.0}
        method = {"name": self.name, **self.options}
        # Evaluation batches so small that each of two processes has some.
        sections = {"backbone": backbone, "data": data, "train": train, "eval": {"batch_size": 4}, "method": method}
        others = {name: section for name, section in self.settings.items() if name != "train"}
        return Config.model_validate({**sections, "device": "cpu", **others, **settings})

    def learner(self, able: bool = False, **settings: Any) -> Learner:
        """A new learner of the method; `able`: on the ViT that knows digits."""
        if able:
            return Learner(self.config(self.able, **settings), self.able_backbone)
        return Learner(self.config(self.random, **settings), self.backbone)

    def learned(self, *tasks: ImageSet, **settings: Any) -> Learner:
        """A learner that has learned `tasks`, by default both pairs of digits, and was asked after each of them."""
        learner = self.learner(**settings)
        for images in tasks or self.train:
            learner.learn(images)
            self.answers(learner)  # so that what was said once and is no longer true would be said again
        return learner

    @cached_property
    def able_story(self) -> tuple[Learner, list[Tensor]]:
        """A learner of both pairs on the ViT that knows digits, and its logits for each pair just after learning it."""
        learner, said = self.learner(able=True, train={"epochs": 4}), []
        for images, test in zip(self.train, self.test, strict=True):
            learner.learn(images)
            said.append(self.answers(learner, test))
        return learner, said

    @cached_property
    def whole(self) -> Learner:
        """A learner of both pairs, to look at and not to change."""
        return self.learned()

    def load(self, store: Path) -> Learner:
        """The learner in `store`; whatever refuses it is an AssertionError."""
        try:
            return Learner.load(store, backbone=self.backbone, trust=True)
        except Exception as error:
            why = "`grow` alone may change shapes, since it alone is repeated at load"
            raise AssertionError(f"a learner that was saved cannot be loaded: {why} ({error})") from error

    def answers(self, learner: Learner, images: ImageSet | None = None) -> Tensor:
        """Logits [N, K] for the test images of both tasks, or for `images`."""
        sets = [one for one in self.test if set(one.classes) <= set(learner.classes)] if images is None else [images]
        return torch.cat(
            [torch.empty(0, len(learner.classes)), *(learner.logits(one, learner.labels(one)) for one in sets)]
        )

    def elsewhere(self, count: int) -> None:
        """Do `checks.elsewhere` in `count` new processes that can form a group.

        Raises ValueError for a class that they could not find: one without a file, or inside a function.
        """
        model = load_method(self.name)
        home = sys.modules[model.__module__]
        if getattr(home, "__file__", None) is None or "." in model.__qualname__:
            raise ValueError(f"{model.__qualname__}: expected a class at the top of a Python file, or a method's name")
        spec = {
            "path": [os.getcwd(), *sys.path],
            "file": getattr(home, "__file__", None),
            "module": model.__module__,
            "class": model.__qualname__,
            **{"name": self.name, "options": self.options, "folder": str(self.folder), "settings": self.settings},
        }
        (self.folder / "job.json").write_bytes(json.dumps(spec).encode())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        codes = starter.run(str(self.folder / "job.json"), group, count, _LIMIT)
        assert codes is not None, f"{count} other processes hang: one waits for what another never does"
        if any(codes):
            said = [(self.folder / f"stderr-{number}").read_text().strip() for number in range(count)]
            last = [text.splitlines()[-1] for text in said if text]
            reasons = [line.partition("AssertionError: ")[2] for line in last if "AssertionError: " in line]
            raise AssertionError([*reasons, *last, "another process died"][0])


def _digits(folder: Path) -> list[list[ImageSet]]:
    """Training and test images of both tasks; other processes find them in `folder`, since to parse them takes long."""
    if not (folder / "test.npz").is_file():
        split = load_split(load_config("demo", ["data.train_per_class=6", "data.test_per_class=4"]).data)
        for part in ("train", "test"):
            images = getattr(split, part).of_classes("".join(_PAIRS))
            pixels = np.stack([images.image(i)[0].numpy() for i in range(len(images))])
            np.savez(folder / part, pixels=pixels, names=[images.classes[label] for label in images.labels])
    whole = []
    for part in ("train", "test"):
        with np.load(folder / f"{part}.npz") as saved:
            whole.append(ImageSet.from_arrays(saved["pixels"], saved["names"].tolist()))
    return [[images.of_classes(pair) for pair in _PAIRS] for images in whole]
