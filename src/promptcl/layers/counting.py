"""How far a stage has come, for methods whose loss depends on the step."""

from __future__ import annotations

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
