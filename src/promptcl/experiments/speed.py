"""Measure images per second, the time of each part of a step, memory, and the share of the machine's peak speed.

One task is learned and evaluated again and again, in turn with another engine if one is given, so that a ratio compares
what ran within the same seconds: the speed of a shared machine changes by more than most improvements bring.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from promptcl.config import Config
from promptcl.config.extensions import reason, run_file
from promptcl.data import ImageSet, load_domains, make_stream
from promptcl.errors import UserError
from promptcl.experiments.inputs import input_rates
from promptcl.experiments.step import anatomy, matmul_gflops, timed
from promptcl.learner import Learner
from promptcl.runtime.provenance import git_commit, process_age, resident_peak, versions
from promptcl.training import Silent


class Engine(Protocol):
    """What a file given as --engine has to hold: a class Engine(config, classes, device) with these two functions."""

    def train(self, images: ImageSet) -> None:
        """Learn the images as one task, train.epochs times."""

    def evaluate(self, images: ImageSet) -> float:
        """Accuracy on the images, percent."""


class _Steps(Silent):
    """Calls a function after every optimiser step."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def step(self) -> None:
        self._call()


class _Ours:
    def __init__(self, config: Config) -> None:
        self.learner = Learner(config)
        self.seen = 0

    def train(self, images: ImageSet, step: Callable[[], None] = lambda: None) -> None:
        # A new learner each time: what some methods train is frozen after their first task.
        self.learner = Learner(self.learner.config, self.learner.backbone)
        self.seen = self.learner.learn(images, progress=_Steps(step)).images

    def evaluate(self, images: ImageSet) -> float:
        return self.learner.evaluate(images).accuracy


def run(
    config: Config,
    engine: str | None,
    rounds: int,
    count: int,
    before: int | None,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure the first task of `config` on `count` of its training and of its test images.

    Args: engine is `plain` (benchmarks/plain.py of a checkout), a Python file, or None; before: bytes of memory that
    the process had with torch imported; tell: hears what is being measured. Returns: plain data for JSON.
    Raises UserError: bad data, weights or settings; an engine that is not there or cannot do these settings.
    """
    task = make_stream(load_domains(config.data), config).tasks[0]
    train, test = _spread(task.train, count), _spread(task.test, count)
    ours = _Ours(config)
    config, device = ours.learner.config, ours.learner.device
    ages: list[float | None] = []
    tell("warming up")
    ours.train(train, lambda: ages.append(process_age()))  # a warm-up, which decodes the images
    timed(lambda: ours.evaluate(test), device)
    memory = _peak_memory(device, before)
    other = None if engine is None else _load(engine)(config, len(train.classes), device)
    if other is not None:  # a warm-up
        other.train(train.select(range(min(len(train), config.train.batch_size))))
        other.evaluate(test)
    measured: dict[str, list[float]] = {"peak": []}
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        measured["peak"].append(matmul_gflops(device, config.backbone.precision))
        for name, job in _round(ours, other, train, test, ours_first=number % 2 == 0):
            measured.setdefault(name, []).append(timed(job, device))
    tell("the parts of a step, and the input alone")
    result = {
        "train": _speed(measured["train"], ours.seen),
        "evaluate": _speed(measured["evaluate"], len(test)),
        "evaluate_again": _speed(measured["evaluate again"], len(test)),
        **anatomy(ours.learner, train, measured, ours.seen),
        "input": input_rates(train, config, ours.learner.backbone.image_size, rounds, device),
        "memory_bytes": memory,
        "first_step_seconds": ages[0] if ages else None,
    }
    if engine is not None:
        result["engine"] = _compare(engine, measured)
    return {**result, "rounds": rounds, **circumstances(config, device)}


def _round(
    ours: _Ours, other: Any, train: ImageSet, test: ImageSet, ours_first: bool
) -> list[tuple[str, Callable[[], object]]]:
    """What is timed in a round, in its order, with names."""
    # A new set of the same images each time, so that its queries are not in the cache and are computed anew.
    fresh_train, fresh_test = train.select(range(len(train))), test.select(range(len(test)))
    work: list[tuple[str, Callable[[], object]]] = [
        ("train", lambda: ours.train(fresh_train)),
        ("evaluate", lambda: ours.evaluate(fresh_test)),
        ("evaluate again", lambda: ours.evaluate(fresh_test)),
    ]
    if other is None:
        return work
    theirs: list[tuple[str, Callable[[], object]]] = [
        ("train, other", lambda: other.train(train)),
        ("evaluate, other", lambda: other.evaluate(test)),
    ]
    return work + theirs if ours_first else theirs + work


def _spread(images: ImageSet, count: int) -> ImageSet:
    """Pick `count` images spread evenly over the set, so that they are of all classes."""
    return images.select(np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64))


def _load(engine: str) -> Any:
    path = Path(__file__).parents[3] / "benchmarks" / "plain.py" if engine == "plain" else Path(engine)
    if path.suffix != ".py" or not os.path.isfile(path):
        raise UserError(f"--engine {engine}: expected `plain`, which only a checkout of promptcl has, or a Python file")
    expected = "expected a Python file with a class Engine(config, classes, device)"
    try:
        made = getattr(run_file(path.absolute()), "Engine", None)
    except Exception as error:  # the code is its author's: it raises anything
        raise UserError(f"--engine {engine} cannot be used ({reason(error)}); {expected}") from error
    if not callable(made):
        raise UserError(f"--engine {engine} cannot be used: {expected}, which it does not have")

    def make(*arguments: object) -> Any:
        try:
            return made(*arguments)
        except ValueError as error:
            raise UserError(f"--engine {engine} cannot do these settings: it expects {error}") from error

    return make


def _speed(seconds: Sequence[float], images: int) -> dict[str, Any]:
    rates = sorted(images / s for s in seconds)
    return {"images_per_second": statistics.median(rates), "lowest": rates[0], "highest": rates[-1], "images": images}


def _compare(engine: str, measured: dict[str, list[float]]) -> dict[str, Any]:
    """How many times as fast as the other engine, round by round."""

    def ratio(ours: str, other: str) -> dict[str, float]:
        ratios = sorted(b / a for a, b in zip(measured[ours], measured[other], strict=True))
        return {"median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}

    return {
        "name": engine if engine == "plain" else Path(engine).name,
        "train": ratio("train", "train, other"),
        "evaluate": ratio("evaluate", "evaluate, other"),
        "evaluate_again": ratio("evaluate again", "evaluate, other"),
    }


def circumstances(config: Config, device: torch.device) -> dict[str, Any]:
    """Settings and machine: what a reader of a timing has to know."""
    settings = config.model_dump(mode="json")
    for section, key in (("data", "root"), ("backbone", "weights")):  # folders of one machine mean nothing elsewhere
        settings[section][key] = settings[section][key] and Path(settings[section][key]).name
    return {
        "config": settings,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions(device),
        "git_commit": git_commit(),
    }


def _peak_memory(device: torch.device, before: int | None) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    now = resident_peak()
    return None if now is None or before is None else now - before
