"""Show how a run goes on: plain lines for logs, or a live bar and a table. Imports no torch."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from promptcl.config import Config
from promptcl.experiments.reading import ReadingBar
from promptcl.experiments.time_left import TimeLeft, duration
from promptcl.runtime.device import about_bfloat16, fast_bfloat16, pick_device


class Ui(Protocol):
    """What a run tells whoever shows it, in this order.

    reading; start; for each task: task, step for each step, evaluating for each test set, task_done; finished.
    warn at any time.
    """

    def reading(self, done: int, of: int) -> None:
        """So many of the images are read that have to be read before anything is learned."""

    def start(self, total_tasks: int, config: Config) -> None:
        """The data are loaded and learning begins."""

    def task(self, index: int, name: str) -> None:
        """Task `index` (from 0) begins."""

    def stage(self, number: int, steps: int) -> None:
        """Stage `number` (from 0) of the task begins and will take `steps` optimiser steps."""

    def step(self) -> None:
        """One optimiser step is done."""

    def evaluating(self, name: str) -> None:
        """Evaluation on the test set of task `name` begins."""

    def warn(self, text: str) -> None:
        """Something the user should know, in one sentence."""

    def task_done(self, record: dict[str, Any]) -> None:
        """A task is learned and evaluated; `record` is its entry in results.json."""

    def finished(self, results: dict[str, Any]) -> None:
        """All is done and results.json is written."""


FINISHED = "this run was finished before; nothing was left to do"


def percent(value: float | None, digits: int = 1) -> str:
    """The text of a percentage, or `-` where there is none yet."""
    return "-" if value is None else f"{value:.{digits}f}"


def beside(record: dict[str, Any]) -> tuple[str, float | None]:
    """Name and value of what is shown beside an average accuracy: online accuracy where there is one, or forgetting."""
    name = "forgetting" if record.get("online_accuracy") is None else "online_accuracy"
    return name, record[name]


class QuietUi:
    """Show a run as one plain line for each task, for logs."""

    def __init__(self, out: Path, write: Callable[[str], None] = print) -> None:
        """`out` is the run's folder; `write` takes each line."""
        self._out, self._write = out, write
        self._total, self._worked = 0, False
        self.reading = ReadingBar(None).tell

    def start(self, total_tasks: int, config: Config) -> None:
        """Print what runs."""
        self._total = total_tasks
        self._write(_headline(total_tasks, config))

    def task(self, index: int, name: str) -> None:
        """Print nothing: the line of a task comes when it is done."""

    def stage(self, number: int, steps: int) -> None:
        """Print nothing."""

    def step(self) -> None:
        """Print nothing."""

    def evaluating(self, name: str) -> None:
        """Remember that there was something to do."""
        self._worked = True

    def warn(self, text: str) -> None:
        """Print the warning as a line."""
        self._write(f"warning: {text}")

    def task_done(self, record: dict[str, Any]) -> None:
        """Print the line of the task."""
        accuracies = " ".join(percent(value) for value in record["accuracies"])
        name, value = beside(record)
        self._write(
            f"task {record['task'] + 1}/{self._total} classes {record['classes']}"
            f" average_accuracy {percent(record['average_accuracy'], 2)} {name} {percent(value, 2)}"
            f" train_images/s {record['train_images_per_second']:.1f}"
            f" eval_images/s {record['eval_images_per_second']:.1f}"
            f" accuracies {accuracies}"
        )

    def finished(self, results: dict[str, Any]) -> None:
        """Print the result in one line."""
        if not self._worked:
            self._write(FINISHED)
        name, value = beside(results)
        self._write(
            f"done average_accuracy {percent(results['average_accuracy'], 2)} {name} {percent(value, 2)}"
            f" results {self._out / 'results.json'}"
        )

    def close(self) -> None:
        """Do nothing: there is no bar to take off the screen."""


class RichUi:
    """Show a run as a bar with the time left, and a table of 80 columns that grows by a row for each task."""

    _HEAD = f"{'task':>7} {'average':>8} {'forgetting':>11} {'train':>9} {'test':>9}  "

    def __init__(self, out: Path, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`out` is the run's folder; `clock` counts seconds."""
        self._out = out
        self._console = console or Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self.reading = ReadingBar(self._console).tell
        self._bar = self._progress.add_task("", left="", total=None, visible=False)
        self._left = TimeLeft(clock)
        self._total, self._worked = 0, False

    def start(self, total_tasks: int, config: Config) -> None:
        """Print what runs and the head of the table, and start the bar."""
        self._total = total_tasks
        self._left.tasks = total_tasks
        for line in _headline(total_tasks, config).split(" on frozen "):
            self._print(line)
        self._print(f"{'':28}{'images/s':>19}")
        head = self._HEAD.replace("forgetting", "    online") if config.measures_online else self._HEAD
        self._print(f"{head}accuracy of each task so far")
        self._progress.start()

    def task(self, index: int, name: str) -> None:
        """Start the bar of a task."""
        self._left.task(index)
        description = f"task {index + 1}/{self._total}: learning"
        self._progress.reset(self._bar, description=description, visible=True, left=self._left.text())
        self._progress.tasks[0].total = None  # which reset would take for "as it was"

    def stage(self, number: int, steps: int) -> None:
        """Let the bar count the steps of this stage."""
        self._left.stage(steps)
        self._progress.reset(self._bar, total=steps, visible=True, left=self._left.text())

    def step(self) -> None:
        """Move the bar."""
        self._left.step()
        self._progress.update(self._bar, advance=1, left=self._left.text())

    def evaluating(self, name: str) -> None:
        """Say that the test images of a task are being predicted."""
        self._worked = True
        # A class-incremental task's name may list its classes; the bar has no room for them.
        description = f"evaluating {textwrap.shorten(name, 24, placeholder='…')}"
        self._progress.update(self._bar, description=description, left=self._left.text())

    def warn(self, text: str) -> None:
        """Print the warning between the rows of the table."""
        self._print(f"warning: {text}")

    def task_done(self, record: dict[str, Any]) -> None:
        """Print the task's row of the table."""
        self._left.task_done(record["task"], record["eval_seconds"], len(record["accuracies"]))
        left = (
            f"{record['task'] + 1:>4}/{self._total:<2} {percent(record['average_accuracy']):>8}"
            f" {percent(beside(record)[1]):>11} {record['train_images_per_second']:>9.1f}"
            f" {record['eval_images_per_second']:>9.1f}  "
        )
        for line in _rows(left, [percent(value) for value in record["accuracies"]], min(self._console.width, 100)):
            self._print(line)

    def finished(self, results: dict[str, Any]) -> None:
        """Print the result and where it is."""
        self.close()
        self._print("" if self._worked else FINISHED)
        for key in ("average", "forgetting", "learning", "average_incremental", "online", "anytime"):
            name = key if key == "forgetting" else f"{key}_accuracy"
            if results.get(name) is not None:
                self._print(f"{name.replace('_', ' '):<29}{results[name]:>7.2f} %")
        self._print(f"{results['trained_parameters']:,} trained parameters, {duration(results['seconds'])}")
        self._print(f"results: {self._out / 'results.json'}")

    def close(self) -> None:
        """Take the bar off the screen."""
        self._progress.stop()

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _headline(total_tasks: int, config: Config) -> str:
    """What runs, in one line: method, data, tasks, seed, backbone, and why in bfloat16 or not."""
    tasks = "1 task" if total_tasks == 1 else f"{total_tasks} tasks"
    backbone = f"{config.backbone.name} ({Path(config.backbone.weights).name} weights)"
    device = pick_device(config.device)
    faster, has = fast_bfloat16(device), about_bfloat16(device)
    if config.backbone.precision == "bf16":
        why = ", bfloat16" if has == "none" else f", bfloat16 ({has})"
    else:  # said where one would expect the other
        why = "" if faster or has == "none" else f", float32 ({has})"
    return f"{config.method['name']}, {config.data.name}, {tasks}, seed {config.seed} on frozen {backbone}{why}"


def _rows(left: str, cells: Sequence[str], width: int) -> list[str]:
    """The row of a task as lines; accuracies that do not fit go on below, under their column."""
    per_line = max(1, (width - len(left)) // 6)
    lines = [
        "".join(f"{cell:>5} " for cell in cells[i : i + per_line]).rstrip() for i in range(0, len(cells), per_line)
    ]
    return [(left if i == 0 else " " * len(left)) + line for i, line in enumerate(lines or [""])]
