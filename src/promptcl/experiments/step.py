"""The parts of a training step: seconds of each, its arithmetic, and its share of the peak speed of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from promptcl.data import ImageSet
from promptcl.learner import Learner
from promptcl.training import Trainer
from promptcl.training.batches import TrainBatch
from promptcl.training.loop import Run

STAGES = ("decode and augment", "query", "prompted forward", "backward", "optimiser")


def wait(device: torch.device) -> None:
    """Wait for what a GPU still has to compute."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(job: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call of `job` takes."""
    wait(device)
    start = time.perf_counter()
    job()
    wait(device)
    return time.perf_counter() - start


def matmul_gflops(device: torch.device, precision: str, calls: int = 5) -> float:
    """Peak speed of this machine in 10^9 operations a second: the best of a few products of square matrices."""
    size = 2048 if device.type == "cpu" else 8192  # a GPU would end a smaller one before the call returns
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    out = a @ b
    seconds = min(timed(lambda: torch.mm(a, b, out=out), device) for _ in range(calls))
    return 2 * size**3 / seconds / 1e9


def anatomy(
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
            seconds[name].append(timed(job, learner.device))
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
