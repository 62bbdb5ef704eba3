"""One writer: the second is refused with the name of the first, and a death releases the lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from forked import in_child

from promptcl.errors import UserError
from promptcl.store import files
from promptcl.store.checkpoint import Checkpoint, discard
from promptcl.store.lock import lock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "things"


@pytest.mark.slow
def test_the_second_writer_is_told_who_is_the_first(folder: Path) -> None:
    command = [sys.executable, "-c", "import sys; from promptcl.store import lock; from pathlib import Path"]
    command[-1] += "\nwith lock(Path(sys.argv[1])): print('have it', flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    first = subprocess.Popen(
        [*command, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "have it\n"
    with pytest.raises(UserError, match=f"being written by process {first.pid} on .* since 2"), lock(folder):
        pass
    first.kill()
    first.communicate()
    with lock(folder):  # its death released the lock
        holder = json.loads((folder / ".lock").read_text())
        assert holder["process"] == os.getpid()


def test_a_thread_may_lock_twice_and_another_may_not(folder: Path) -> None:
    def other() -> None:
        try:
            with lock(folder):
                said.append("got it")
        except UserError as error:
            said.append(str(error))

    said: list[str] = []
    with lock(folder), lock(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "being written by process" in in_child(lambda: lock(folder).__enter__())
    assert f"process {os.getpid()}" in said[0]
    with lock(folder):
        pass


def test_a_lock_taken_twice_is_held_until_the_outer_one_ends(folder: Path) -> None:
    with lock(folder):
        with lock(folder):
            pass
        assert "being written by process" in in_child(lambda: lock(folder).__enter__())


def test_nothing_is_written_through_a_link(folder: Path) -> None:
    folder.mkdir()
    victim = folder.with_name("victim.txt")
    victim.write_text("mine")
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match=r"\.lock is a link"), lock(folder):
        pass
    assert victim.read_text() == "mine"
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    (folder / "checkpoint").symlink_to(elsewhere)
    with pytest.raises(UserError, match="checkpoint is a link"):
        Checkpoint(folder, {"base": "x"}, 1)
    (elsewhere / "checkpoint.json").write_text("mine")
    discard(folder)
    assert (elsewhere / "checkpoint.json").read_text() == "mine"


def test_a_released_lock_forgets_its_holder(folder: Path) -> None:
    """Else we would take the next holder, which has not written its name yet, for ourselves."""
    folder.mkdir()
    (folder / "something").write_text("x")
    with lock(folder):
        assert (folder / ".lock").read_text()
    assert not (folder / ".lock").read_text()


def test_a_lock_for_nothing_leaves_nothing(folder: Path) -> None:
    with pytest.raises(UserError), lock(folder):
        raise UserError("a mistake found later")
    assert not folder.exists()


def test_a_folder_called_checkpoint_may_be_the_users_own(folder: Path) -> None:
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "my_model.pt").write_text("mine")
    files.write_pair(folder / "checkpoint" / "checkpoint.json", {"format": 1}, {"x": torch.zeros(2)})
    discard(folder)
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["my_model.pt"]


def test_a_discard_that_is_killed_leaves_no_half_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON goes first: tensors alone mean nothing."""
    path = folder / "checkpoint" / "checkpoint.json"
    files.write_pair(path, {"format": 1}, {"x": torch.zeros(2)})
    gone: list[str] = []
    unlink = Path.unlink

    def noted(self: Path, missing_ok: bool = False) -> None:
        gone.append(self.name)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    discard(folder)
    assert gone[0] == "checkpoint.json"
    assert gone[1].startswith("state-")
