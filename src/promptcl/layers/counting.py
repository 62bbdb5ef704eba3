"""How far a stage has come, for methods whose loss or learning rate depends on the step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class StepCount(nn.Module):
    """Steps of a stage that are done; a checkpoint holds their number, and a saved learner does not."""

    step: Tensor

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.long), persistent=False)
        self._at: int | None = None  # the same on the host, read once a stage: to ask the device would wait for it

    def restart(self) -> None:
        """Begin a stage, at 0 or where a checkpoint then says."""
        self.step.zero_()
        self._at = None

    @property
    def done(self) -> int:
        """Their number."""
        if self._at is None:
            self._at = int(self.step)
        return self._at

    def count(self) -> None:
        """Count a step; for `Stage.after_step`."""
        self._at = self.done + 1
        self.step.fill_(self._at)


def half_cosine(done: float) -> float:
    """What a rate that falls to 0 by a half cosine is times, by the share of the steps that are done."""
    return (1 + math.cos(math.pi * done)) / 2


def falling(factor: float, *marks: float) -> Callable[[float], float]:
    """What a rate is times, by the share of the steps that are done: `factor` for each of `marks` that are passed."""
    return lambda done: factor ** sum(done >= mark for mark in marks)
