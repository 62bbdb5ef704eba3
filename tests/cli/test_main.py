"""The command as users run it: exit codes, one line on stderr, nothing half-written, what is shown."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from promptcl.cli.errors import explain
from promptcl.cli.options import split_arguments
from promptcl.cli.train import free_folder
from promptcl.config.schema import Config
from promptcl.errors import UserError
from promptcl.experiments.progress import QuietUi, RichUi, TimeLeft


def promptcl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "promptcl", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=600)


def refused(*arguments: str, cwd: Path) -> str:
    """The one line on stderr of a command that fails as it should, leaving nothing behind."""
    before = sorted(cwd.rglob("*"))
    result = promptcl(*arguments, cwd=cwd)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert sorted(cwd.rglob("*")) == before
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def test_help_and_version(tmp_path: Path) -> None:
    result = promptcl("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "train" in result.stdout
    assert "list" in result.stdout
    assert re.fullmatch(r"promptcl \d+\.\d+\.\d+\n", promptcl("--version", cwd=tmp_path).stdout)


def test_list(tmp_path: Path) -> None:
    assert re.search(r"^l2p +L2P", promptcl("list", "recipes", cwd=tmp_path).stdout, re.M)
    everything = promptcl("list", cwd=tmp_path).stdout
    assert all(word in everything for word in ("recipes:", "methods:", "datasets:", "ncm", "cifar100"))
    assert "did you mean datasets?" in refused("list", "dataset", cwd=tmp_path)
    assert max(map(len, everything.splitlines())) > 80  # one line each, for grep


def test_list_fits_a_terminal(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "promptcl", "list"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, env={**os.environ, "COLUMNS": "60"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # that is how a terminal ends
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    lines = shown.decode().splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == " ".join(promptcl("list", cwd=tmp_path).stdout.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train.learning_rate=3"], "did you mean train.lr?"),
        (["demo", "train.epochs=0"], "expected a whole number greater than 0"),
        (["l2pp"], "did you mean l2p?"),
        (["demo", "l2p"], "expected one recipe and then key=value"),
        (["demo", "method.name=nmc"], "did you mean ncm?"),
        (["demo", "data.name=mnist"], "did you mean mnist5k?"),
        (["absent.yaml"], "absent.yaml"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(arguments: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refused("train", *arguments, cwd=tmp_path)


def test_out_that_holds_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text("{}")
    (tmp_path / "file").write_text("")
    assert "already holds results.json" in refused("train", "--out", "old", cwd=tmp_path)
    assert "it is a file" in refused("train", "--out", "file", cwd=tmp_path)


def test_unknown_option_exits_2(tmp_path: Path) -> None:
    result = promptcl("train", "--quite", cwd=tmp_path)
    assert result.returncode == 2
    assert "--quiet" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_exits_130_without_a_traceback(tmp_path: Path) -> None:
    # The recipe is a pipe that nobody fills, so the command is surely inside `train` when the signal comes.
    pipe = tmp_path / "waits.yaml"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "promptcl", "train", str(pipe)]
    # A background job of a shell ignores Ctrl-C, and so would its children.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    writer = os.open(pipe, os.O_WRONLY)  # returns when the command has opened the pipe
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].strip() == "interrupted"
    os.close(writer)
    assert process.returncode == 130


def test_default_folder_is_never_one_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_folder("l2p", 42) == Path("runs/l2p-seed42")
    Path("runs/l2p-seed42").mkdir(parents=True)
    assert free_folder("l2p", 42) == Path("runs/l2p-seed42-2")
    Path("runs/l2p-seed42-2").mkdir()
    assert free_folder("some/where/l2p.yaml", 42) == Path("runs/l2p-seed42-3")
    assert free_folder("runs/l2p-seed42-2/config.yaml", 7) == Path("runs/l2p-seed7")


def test_first_argument_is_the_recipe_unless_it_is_a_setting(tmp_path: Path) -> None:
    assert split_arguments([]) == ("demo", [])
    assert split_arguments(["seed=1"]) == ("demo", ["seed=1"])
    assert split_arguments(["l2p", "seed=1"]) == ("l2p", ["seed=1"])
    path = tmp_path / "lr=1.yaml"
    path.write_text("tasks: 2")
    assert split_arguments([str(path), "seed=1"]) == (str(path), ["seed=1"])
    with pytest.raises(UserError, match="expected one recipe"):
        split_arguments(["l2p", "seed"])


def test_full_disk_and_no_permission_are_sentences() -> None:
    assert "no disk space left" in explain(OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    assert "no permission" in explain(PermissionError(errno.EACCES, "Permission denied", "runs/x"))
    assert explain(OSError(errno.EIO, "Input/output error", "a.png")) == "a.png: Input/output error"


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
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=terminal, color_system=None, highlight=False)
    ui = RichUi(Path("runs/x"), console)
    ui.start(20, Config())
    for task in range(20):
        ui.task(task, "some classes", 2)
        ui.step()
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
        ui.task(task, "t", 1)
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
    ui.task(0, "t", 0)
    ui.task_done(record(0, 1))
    ui.finished(RESULTS)
    assert "finished before" in lines[-2]
    assert "finished before" not in shown_for_twenty_tasks(terminal=False)


def test_time_left_counts_the_steps_and_tests_to_come() -> None:
    now = [0.0]
    left = TimeLeft(lambda: now[0])

    def steps(*seconds: float) -> None:
        for one in seconds:
            now[0] += one
            left.step()

    left.tasks = 3
    left.task(0, 10)
    steps(60.0, 2.0, 2.0)  # the first step warms up
    assert left.text() == ""
    steps(2.0, 2.0)
    assert left.seconds() == pytest.approx((5 + 10 + 10) * 2.0)
    left.always_trains = False
    assert left.text() == "10 s of training left"
    left.always_trains = True
    steps(*[2.0] * 5)
    left.task_done(0, 4.0, 1)  # one test set takes 4 s; tasks 2 and 3 will evaluate 2 and 3 of them
    left.task(1, 10)
    assert left.seconds() == pytest.approx(20 * 2.0 + (2 + 3) * 4.0)
    assert left.text() == "1 min left"
