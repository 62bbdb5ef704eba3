"""What happens to a disk and to folders while a command runs: one sentence, and a store that is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import after_operation, in_child
from helpers import SMALL, call

from promptcl import store as stores
from promptcl.errors import UserError
from promptcl.learner.learner import Learner

FEW = ["data.train_per_class=3", "data.test_per_class=2", "tasks=2", "method.name=ncm"]


def ended(*words: object) -> None:
    """Run a command, and raise what it said as a UserError where it ended with one line and exit code 2."""
    result = call(*words)
    if result.exit_code == 0:
        return
    assert result.exit_code == 2, repr(result.exception) + result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    raise UserError(last)


def words(verb: str, place: Path, folders: Path) -> list[object]:
    return {
        "learn": ["learn", place / "store", folders / "second", "--again", "--quiet"],
        "forget": ["forget", place / "store", "3"],
        "undo": ["undo", place / "store"],
        "report": ["report", place / "store", "--out", place / "page.html"],
        "train": ["train", "demo", *SMALL, *FEW, "backbone.kwargs={}", "--quiet", "--out", place / "run"],
    }[verb]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["learn", "forget", "undo", "report", "train"])
def test_an_error_of_the_disk_at_any_operation(verb: str, store: Path, folders: Path, tmp_path: Path) -> None:
    def broken() -> None:
        raise OSError(errno.EIO, "Input/output error", "disk")

    def work(place: Path, number: int) -> None:
        after_operation(number, broken)
        ended(*words(verb, place, folders))

    before = stores.load(store)
    said = []
    for number in (1, 2, 3, 4, 6, 9, 13, 19, 28, 40, 60):
        place = tmp_path / str(number)
        shutil.copytree(store, place / "store")
        said.append(in_child(lambda place=place, number=number: work(place, number)))  # type: ignore[misc]
        assert not list(place.rglob(".*.tmp")), number
        after = stores.load(place / "store")
        changed = after.checksum != before.checksum
        assert not changed or verb in ("learn", "forget", "undo")
        if said[-1] == "done":
            break
        assert "Input/output error" in said[-1]
        assert (place / "page.html").exists() == (place / "page-figures").exists()
    assert said[0] != "done"


def another_store(place: Path) -> None:
    (place / "store").rename(place / "moved")
    shutil.copytree(place / "moved", place / "store")
    learner = Learner.load(place / "store")
    learner.undo()
    learner.save(place / "store")


def no_store(place: Path) -> None:
    shutil.rmtree(place / "store")


def no_images(place: Path) -> None:
    shutil.rmtree(place / "images")


def no_working_folder(place: Path) -> None:
    shutil.rmtree(place / "here")


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (another_store, "holds a learner that this one does not descend from"),
        (no_store, ""),
        (no_images, ""),  # all were decoded, and are kept, before anything is learned
        (no_working_folder, ""),
    ],
)
def test_what_vanishes_while_it_learns(
    act: Callable[[Path], None],
    reason: str,
    store: Path,
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle of learning: once the images are listed, hashed and decoded."""
    shutil.copytree(store, tmp_path / "store")
    shutil.copytree(folders / "first", tmp_path / "images")
    (tmp_path / "here").mkdir()
    tell = Learner.tell

    def late(learner: Learner, *given: object) -> None:
        act(tmp_path)
        monkeypatch.setattr(Learner, "tell", tell)
        tell(learner, *given)  # type: ignore[arg-type]

    def work() -> None:
        os.chdir(tmp_path / "here")
        ended("learn", tmp_path / "store", tmp_path / "images", "--again", "--quiet")

    monkeypatch.setattr(Learner, "tell", late)
    said = in_child(work)
    assert (reason in said) if reason else said == "done"
    monkeypatch.setattr(Learner, "tell", tell)
    found = stores.load(tmp_path / "store")
    assert len(found.tasks) == (1 if act is another_store else 3 if not reason else 2)


@pytest.mark.parametrize("name", ["checkpoint", "learner.json", ".lock"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_a_stranger_has_put_into_a_store(name: str, kind: str, store: Path, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    victim, place = tmp_path / "victim", tmp_path / "store" / name
    victim.mkdir()
    (victim / "stage-0.json").write_text("precious")
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to(victim)
    else:
        place.mkdir()
        os.mkfifo(place / "stage-0.json")
    said = in_child(lambda: ended("learn", tmp_path / "store", folders / "first", "--again", "--quiet"))
    unread = name == "checkpoint" and kind != "link"  # this learner trains nothing
    assert said == "done" if unread else said.startswith("error: ")
    assert (victim / "stage-0.json").read_text() == "precious"
