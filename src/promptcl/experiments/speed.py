"""Measure images per second, the time of each part of a step, memory, and the share of the machine's peak speed.

One task is learned and evaluated again and again, in turn with another engine if one is given, so that a ratio compares
what ran within the same seconds: the speed of a shared machine changes by more than most improvements bring.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from promptcl.config import Config
from promptcl.data import ImageSet, load_domains, make_stream
from promptcl.errors import UserError
from promptcl.experiments.inputs import input_rates
from promptcl.learner import Learner
from promptcl.runtime.provenance import git_commit, process_age, resident_peak, versions
from promptcl.training import Silent, Trainer
from promptcl.training.batches import TrainBatch
from promptcl.training.loop import Run

STAGES = ("decode and augment", "query", "prompted forward", "backward", "optimiser")


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


def run(config: Config, engine: str | None, rounds: int, count: int, before: int | None) -> dict[str, Any]:
    """Measure the first task of `config` on `count` of its training and of its test images.

    Args: engine is `plain` (benchmarks/plain.py of a checkout), a Python file, or None; before: bytes of memory that
    the process had with torch imported. Returns: plain data for JSON.
    Raises UserError: bad data, weights or settings; an engine that is not there or cannot do these settings.
    """
    task = make_stream(load_domains(config.data), config).tasks[0]
    train, test = _spread(task.train, count), _spread(task.test, count)
    ours = _Ours(config)
    config, device = ours.learner.config, ours.learner.device
    ages: list[float | None] = []
    ours.train(train, lambda: ages.append(process_age()))  # a warm-up, which decodes the images
    _timed(lambda: ours.evaluate(test), device)
    memory = _peak_memory(device, before)
    other = None if engine is None else _load(engine)(config, len(train.classes), device)
    if other is not None:  # a warm-up
        other.train(train.select(range(min(len(train), config.train.batch_size))))
        other.evaluate(test)
    measured: dict[str, list[float]] = {"peak": []}
    for number in range(rounds):
        measured["peak"].append(matmul_gflops(device, config.backbone.precision))
        # A new set of the same images each time, so that its queries are not in the cache and are computed anew.
        fresh_train, fresh_test = train.select(range(len(train))), test.select(range(len(test)))
        work: list[tuple[str, Callable[[], object]]] = [
            ("train", lambda images=fresh_train: ours.train(images)),  # type: ignore[misc]
            ("evaluate", lambda images=fresh_test: ours.evaluate(images)),  # type: ignore[misc]
            ("evaluate again", lambda images=fresh_test: ours.evaluate(images)),  # type: ignore[misc]
        ]
        if other is not None:
            theirs: list[tuple[str, Callable[[], object]]] = [
                ("train, other", lambda: other.train(train)),
                ("evaluate, other", lambda: other.evaluate(test)),
            ]
            work = work + theirs if number % 2 == 0 else theirs + work
        for name, job in work:
            measured.setdefault(name, []).append(_timed(job, device))
    result = {
        "train": _speed(measured["train"], ours.seen),
        "evaluate": _speed(measured["evaluate"], len(test)),
        "evaluate_again": _speed(measured["evaluate again"], len(test)),
        **_anatomy(ours.learner, train, measured, ours.seen),
        "input": input_rates(train, config, ours.learner.backbone.image_size, rounds, device),
        "memory_bytes": memory,
        "first_step_seconds": ages[0] if ages else None,
    }
    if engine is not None:
        result["engine"] = _compare(engine, measured)
    return {**result, "rounds": rounds, **circumstances(config, device)}


def _spread(images: ImageSet, count: int) -> ImageSet:
    """Pick `count` images spread evenly over the set, so that they are of all classes."""
    return images.select(np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64))


def _load(engine: str) -> Any:
    path = Path(__file__).parents[3] / "benchmarks" / "plain.py" if engine == "plain" else Path(engine)
    spec = importlib.util.spec_from_file_location("promptcl_engine", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--engine {engine}: expected `plain`, which only a checkout of promptcl has, or a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(*arguments: object) -> Any:
        try:
            return module.Engine(*arguments)
        except ValueError as error:
            raise UserError(f"--engine {engine} cannot do these settings: it expects {error}") from error

    return make


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(job: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call of `job` takes."""
    _wait(device)
    start = time.perf_counter()
    job()
    _wait(device)
    return time.perf_counter() - start


def matmul_gflops(device: torch.device, precision: str, calls: int = 5) -> float:
    """Peak speed of this machine in 10^9 operations a second: the best of a few products of square matrices."""
    size = 2048 if device.type == "cpu" else 8192  # a GPU would end a smaller one before the call returns
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    out = a @ b
    seconds = min(_timed(lambda: torch.mm(a, b, out=out), device) for _ in range(calls))
    return 2 * size**3 / seconds / 1e9


def _anatomy(
    used: Learner, images: ImageSet, measured: dict[str, list[float]], seen: int, steps: int = 5
) -> dict[str, Any]:
    """Seconds of each part of a training step, and its share of the machine's peak speed; {} if there is no step."""
    learner = Learner(used.config, used.backbone)
    with torch.no_grad():
        task = learner.begin(images)
        stage = next(learner.method.learn(learner.backbone, task), None)
    if stage is None or stage.images is None or not learner.trained_parameters():
        return {}
    trainer = learner.trainer(task)
    run = trainer.prepare(stage, 0)
    order_N = torch.arange(len(stage.images)).repeat(steps + 2)
    learner.method.train()
    reads_query = _Step(learner, trainer, run, order_N, 0).count()["query"] > 0  # also a warm-up
    learner.backbone.activation_checkpointing = False  # what is computed twice to save memory counts once
    counted = _Step(learner, trainer, run, order_N, 0).count()
    learner.backbone.activation_checkpointing = learner.config.backbone.activation_checkpointing
    seconds: dict[str, list[float]] = {name: [] for name in STAGES}
    for number in range(1, steps + 2):
        step = _Step(learner, trainer, run, order_N, 0 if number == 1 else number % run.per_epoch, reads_query)
        for name, job in zip(STAGES, step.jobs(), strict=True):
            seconds[name].append(_timed(job, learner.device))
    passes = max(1, round(seen / len(images)))
    clean = learner.batches.clean
    per_image = (counted["query"] / (passes if clean else 1) + counted["student"]) / counted["images"]
    rates = [per_image * seen / s / 1e9 for s in measured["train"]]
    stages = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        "stages_seconds": {**stages, **({"query": stages["query"] / passes} if clean else {})},
        "gflop_per_image": per_image / 1e9,
        "gflops": statistics.median(rates),
        "peak_gflops": statistics.median(measured["peak"]),
        "share_of_peak": statistics.median(r / p for r, p in zip(rates, measured["peak"], strict=True)),
    }


class _Step:
    """One training step, split into parts that are timed one by one."""

    def __init__(
        self, learner: Learner, trainer: Trainer, run: Run, order_N: torch.Tensor, step: int, query: bool = True
    ) -> None:
        self.learner, self.run, self.query = learner, run, query
        self.batch, _ = trainer.batch(run, step, order_N)
        self.loss = torch.zeros(())

    def jobs(self) -> list[Callable[[], object]]:
        """The parts of the step, in order, as STAGES names them."""

        def query() -> None:
            if self.query:
                self.batch.__dict__["query_BD"] = self.learner.batches.query(self.batch.images_BCHW)

        def forward() -> None:
            loss = self.run.stage.loss or self.learner.method.loss
            self.loss = loss(self.learner.backbone, self.batch)
            self.run.optimizer.zero_grad(set_to_none=True)

        return [lambda: self.batch.images_BCHW, query, forward, lambda: self.loss.backward(), self.run.optimizer.step]

    def count(self) -> dict[str, int]:
        """Floating-point operations of the query and of the rest; the query counts if the method reads it."""
        self.query = False
        _, _, forward, backward, _ = self.jobs()
        pixels = self.batch.images_BCHW
        known = self.learner.batches.query(pixels)
        self.batch.__dict__["query_BD"] = known
        student = _flops(forward, backward)
        del self.batch.__dict__["query_BD"]
        reads = "query_BD" in _read_by(lambda: forward(), self.batch)
        return {
            "query": _flops(lambda: self.learner.batches.query(pixels)) if reads else 0,
            "student": student,
            "images": len(pixels),
        }


def _read_by(job: Callable[[], object], batch: TrainBatch) -> set[str]:
    """Names of the values of `batch` that are computed once `job` has run."""
    job()
    return set(batch.__dict__)


def _flops(*jobs: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        for job in jobs:
            job()
    return int(counter.get_total_flops())


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
