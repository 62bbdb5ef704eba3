"""SIGTERM and SIGHUP at any moment of every command: it says `interrupted`, and what it worked on is old or new."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from forked import in_child
from helpers import SMALL, call

from promptcl import store as stores
from promptcl.cli.system import heed_signals
from promptcl.errors import UserError

MOMENTS = (0.15, 0.3, 0.55, 0.8, 0.95)
"""When a signal comes, as shares of the time that the command takes."""


def words(verb: str, place: Path, folders: Path) -> list[object]:
    """A command of `verb` on the learner in `place`/store, which writes nowhere else but to `place`."""
    store, image = place / "store", next((folders / "second" / "3").iterdir())
    few = ["data.train_per_class=3", "data.test_per_class=2", "tasks=2", "method.name=ncm", "backbone.kwargs={}"]
    return {
        "learn": ["learn", store, folders / "second", "--again", "--quiet"],
        "predict": ["predict", store, folders / "test"],
        "evaluate": ["evaluate", store, folders / "test"],
        "info": ["info", store],
        "forget": ["forget", store, "3"],
        "rename": ["rename", store, "3", "three"],
        "undo": ["undo", store],
        "correct": ["correct", store, image, "--class", "4"],
        "report": ["report", store, "--out", place / "page.html"],
        "export": ["export", store, place / "model.pt2"],
        "train": ["train", "demo", *SMALL, *few, "--quiet", "--out", place / "run"],
    }[verb]


def interrupted(command: list[object], number: int, seconds: float) -> None:
    """Run a command to which signal `number` comes after some seconds; raises UserError with its exit code."""
    for usual in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(usual, signal.SIG_DFL)
    heed_signals()
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
    try:
        result = call(*command)
        signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:  # when the command was over, or had not begun
        raise UserError("exit code 130") from None
    if result.exit_code:
        early = result.exit_code == 130 and not result.stderr  # its words were still being read
        assert early or result.stderr.splitlines()[-1:] == ["interrupted"], result.stderr + repr(result.exception)
        raise UserError(f"exit code {result.exit_code}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    ["learn", "predict", "evaluate", "info", "forget", "rename", "undo", "correct", "report", "export", "train"],
)
def test_a_signal_at_any_moment(verb: str, store: Path, folders: Path, tmp_path: Path) -> None:
    before = stores.load(store).checksum
    shutil.copytree(store, tmp_path / "whole" / "store")
    start = time.perf_counter()
    assert in_child(lambda: interrupted(words(verb, tmp_path / "whole", folders), signal.SIGTERM, 600)) == "done"
    takes, after = time.perf_counter() - start, stores.load(tmp_path / "whole" / "store").checksum
    said = []
    slow = verb in ("report", "export")
    for turn, moment in enumerate(MOMENTS[1::2] if slow else MOMENTS):
        number, place = (signal.SIGTERM, signal.SIGHUP)[turn % 2], tmp_path / str(turn)
        shutil.copytree(store, place / "store")
        command = words(verb, place, folders)
        said.append(in_child(lambda c=command, n=number, s=moment * takes: interrupted(c, n, s)))  # type: ignore[misc]
        assert said[-1] in ("done", "exit code 130", f"exit code {128 + number}")
        assert not list(place.rglob(".*.tmp"))
        found = stores.load(place / "store").checksum
        # A time is written into what is learned or changed, so the new one has no checksum that is known before.
        assert found == before or verb in ("learn", "forget", "rename", "undo", "correct")
        if said[-1] == "done" and before != after:
            assert found != before
    assert set(said) != {"done"}
