"""What a run shows: a bar and a table on a terminal, one line a task elsewhere, the time that is left."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from promptcl.config.schema import Config
from promptcl.experiments.progress import QuietUi, RichUi
from promptcl.experiments.time_left import TimeLeft


def record(task: int, tasks: int) -> dict[str, Any]:
    return {
        "task": task,
        "name": "some classes",
        "classes": 10 * (task + 1),
        "accuracies": [100.0] * (task + 1),
        "average_accuracy": 100.0,
        "forgetting": None if task == 0 else 12.345,
        "train_seconds": 2.0,
        "train_images_per_second": 12345.6,
        "eval_seconds": 1.0,
        "eval_images_per_second": 123456.7,
    }


RESULTS = {
    "average_accuracy": 83.831,
    "forgetting": 7.63,
    "learning_accuracy": 90.0,
    "average_incremental_accuracy": 88.0,
    "trained_parameters": 122980,
    "seconds": 4000.0,
}


def shown_for_twenty_tasks(terminal: bool) -> str:
    shown, clock = io.StringIO(), itertools.count(1.0)
    console = Console(file=shown, width=80, force_terminal=terminal, color_system=None, highlight=False)
    ui = RichUi(Path("runs/x"), console, lambda: next(clock))
    ui.start(20, Config())
    for task in range(20):
        ui.task(task, "some classes")
        for number, steps in enumerate((2, 1)):
            ui.stage(number, steps)
            for _ in range(steps):
                ui.step()
        ui.evaluating("some classes " * 20)
        ui.task_done(record(task, 20))
    ui.finished(RESULTS)
    ui.close()
    return shown.getvalue()


def test_table_fits_80_columns_for_twenty_tasks() -> None:
    lines = shown_for_twenty_tasks(terminal=False).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("/20 " in line for line in lines) == 20
    assert "\n".join(lines).count("100.0") == 20 + 210  # every average, and every accuracy of the triangle
    assert lines[-1] == "results: runs/x/results.json"
    assert any(line.split() == ["average", "accuracy", "83.83", "%"] for line in lines)


def test_bar_shows_task_and_time_left() -> None:
    drawn = shown_for_twenty_tasks(terminal=True)
    assert "task 1/20: learning" in drawn
    assert re.search(r"\d+ (s|min) left", drawn)


def test_quiet_prints_one_line_a_task() -> None:
    lines: list[str] = []
    ui = QuietUi(Path("runs/x"), lines.append)
    ui.start(2, Config())
    for task in range(2):
        ui.task(task, "t")
        ui.stage(0, 1)
        ui.step()
        ui.evaluating("t")
        ui.task_done(record(task, 2))
    ui.finished(RESULTS)
    assert len(lines) == 4
    assert lines[1].startswith("task 1/2 classes 10 average_accuracy 100.00 forgetting - train_images/s 12345.6")
    assert lines[2].endswith("accuracies 100.0 100.0")
    assert lines[3] == "done average_accuracy 83.83 forgetting 7.63 results runs/x/results.json"


def test_a_run_that_was_finished_before_says_so() -> None:
    lines: list[str] = []
    ui = QuietUi(Path("runs/x"), lines.append)
    ui.start(1, Config())
    ui.task(0, "t")
    ui.task_done(record(0, 1))
    ui.finished(RESULTS)
    assert "finished before" in lines[-2]
    assert "finished before" not in shown_for_twenty_tasks(terminal=False)


class Clock:
    """A clock, and the time that is left by it."""

    def __init__(self, tasks: int) -> None:
        self.now = 0.0
        self.left = TimeLeft(lambda: self.now)
        self.left.tasks = tasks

    def steps(self, *seconds: float) -> None:
        for one in seconds:
            self.now += one
            self.left.step()


def test_time_left_counts_the_steps_and_tests_to_come() -> None:
    clock = Clock(tasks=3)
    left = clock.left
    left.task(0)
    assert left.seconds() is None
    left.stage(10)
    clock.steps(60.0, 2.0, 2.0)  # the first step warms up
    assert left.text() == ""
    clock.steps(2.0, 2.0)
    assert left.seconds() == pytest.approx(5 * 2.0)  # nothing is known of later tasks: some methods train in none
    assert left.text() == "10 s left in this task"
    clock.steps(*[2.0] * 5)
    left.task_done(0, 4.0, 1)  # one test set takes 4 s; tasks 2 and 3 will evaluate 2 and 3 of them
    left.task(1)
    left.stage(10)
    assert left.seconds() == pytest.approx(20 * 2.0 + (2 + 3) * 4.0)
    assert left.text() == "1 min left"


def test_time_left_counts_every_stage_that_has_begun() -> None:
    clock = Clock(tasks=2)
    left = clock.left
    left.task(0)
    left.stage(4)
    clock.steps(2.0, 2.0, 2.0, 2.0)
    assert not left.seconds()
    assert left.text() == ""
    left.stage(6)
    assert left.seconds() == pytest.approx(6 * 2.0)
    clock.steps(*[2.0] * 6)
    left.task_done(0, 1.0, 1)
    left.task(1)
    left.stage(4)
    assert left.seconds() == pytest.approx(4 * 2.0 + 2 * 1.0)
    clock.steps(*[2.0] * 4)
    left.stage(6)
    assert left.seconds() == pytest.approx(6 * 2.0 + 2 * 1.0)


def test_time_left_where_nothing_is_trained() -> None:
    """No step, no stage: nothing is known, and nothing is divided by it."""
    left = Clock(tasks=2).left
    for task in range(2):
        left.task(task)
        assert left.text() == ""
        left.task_done(task, 1.0, task + 1)


def test_steps_done_before_an_interruption_say_nothing_of_the_time_left() -> None:
    clock = Clock(tasks=1)
    clock.left.task(0)
    clock.left.stage(1000)
    clock.now = 7.0
    clock.steps(3.0, *[5e-6] * 499)  # told again, after the checkpoint was read
    assert clock.left.text() == ""
    clock.steps(90.0)  # the first warms up
    assert clock.left.text() == ""
    clock.steps(60.0, 60.0, 60.0)
    assert clock.left.seconds() == pytest.approx(496 * 60.0)
    assert clock.left.text() == "8 h 16 min left"


def test_one_task_says_all_that_is_left() -> None:
    clock = Clock(tasks=1)
    clock.left.task(0)
    clock.left.stage(10)
    clock.steps(*[2.0] * 6)
    assert clock.left.text() == "8 s left"
