"""How long a run still takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

AT_ONCE = 0.0002
"""Seconds: steps told one after the other within these were done before an interruption. No step that trains is so
quick; telling one takes some microseconds."""


class TimeLeft:
    """Estimate how long a run still takes.

    Later tasks are taken to need as many steps as this one, and one test set more each, unless all share one. While the
    first task is learned nothing is known of later ones, which with some methods take no steps at all.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds."""
        self.tasks = 1
        self._clock = clock
        self._index = self._steps = self._done_steps = 0
        self._began = self._evaluation = 0.0
        self._recent: deque[float] = deque(maxlen=20)  # seconds a step, without the first that is trained of a task
        self._first = True  # such a step comes next; it warms up
        self._single = 0  # tasks between two evaluations on a single test set

    def task(self, index: int) -> None:
        """Task `index` (from 0) begins."""
        self._index, self._steps, self._done_steps, self._first = index, 0, 0, True

    def stage(self, steps: int) -> None:
        """A stage of `steps` steps begins."""
        self._steps += steps

    def step(self) -> None:
        """Note the time of a step that is done."""
        now = self._clock()
        before = self._done_steps > 0 and now - self._began < AT_ONCE
        if before:
            self._recent.clear()
        elif not self._first:
            self._recent.append(now - self._began)
        self._first = before
        self._done_steps += 1
        self._began = now

    def task_done(self, index: int, eval_seconds: float, test_sets: int) -> None:
        """A task was evaluated on `test_sets` test sets, in `eval_seconds` seconds."""
        self._evaluation = eval_seconds / test_sets
        if test_sets == 1 and index > 0 and not self._single:
            self._single = index + 1

    def seconds(self) -> float | None:
        """Estimated seconds left; None before the first few steps."""
        if len(self._recent) < 3:
            return None
        steps = self._steps - self._done_steps
        step = sum(self._recent) / len(self._recent)
        if self._index == 0:
            return steps * step
        steps += self._steps * (self.tasks - self._index - 1)
        tests = sum(range(self._index + 1, self.tasks + 1))
        if self._single:
            tests = (self.tasks - self._index - 1) // self._single + 1
        return steps * step + tests * self._evaluation

    def text(self) -> str:
        """Text such as `4 min left`; empty while nothing is known."""
        seconds = self.seconds()
        if not seconds:
            return ""
        return f"{duration(seconds)} left{' in this task' if self._index == 0 and self.tasks > 1 else ''}"


def duration(seconds: float) -> str:
    """Seconds as text with a fitting unit."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
