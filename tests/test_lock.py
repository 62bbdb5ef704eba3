"""One writer: the second is refused with the name of the first, and a death releases the lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from forked import in_child

from promptcl import durable
from promptcl.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "things"


def test_the_second_writer_is_told_who_is_the_first(folder: Path) -> None:
    command = [sys.executable, "-c", "import sys; from promptcl import durable; from pathlib import Path"]
    command[-1] += "\nwith durable.lock(Path(sys.argv[1])): print('have it', flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": str(Path(durable.__file__).parents[1])}
    first = subprocess.Popen(
        [*command, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "have it\n"
    with pytest.raises(UserError, match=f"being written by process {first.pid} on .* since 2"), durable.lock(folder):
        pass
    first.kill()
    first.communicate()
    with durable.lock(folder):  # its death released the lock
        holder = json.loads((folder / ".lock").read_text())
        assert holder["process"] == os.getpid()


def test_a_thread_may_lock_twice_and_another_may_not(folder: Path) -> None:
    def other() -> None:
        try:
            with durable.lock(folder):
                said.append("got it")
        except UserError as error:
            said.append(str(error))

    said: list[str] = []
    with durable.lock(folder), durable.lock(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "being written by process" in in_child(lambda: durable.lock(folder).__enter__())
    assert f"process {os.getpid()}" in said[0]
    with durable.lock(folder):
        pass


def test_a_lock_taken_twice_is_held_until_the_outer_one_ends(folder: Path) -> None:
    with durable.lock(folder):
        with durable.lock(folder):
            pass
        assert "being written by process" in in_child(lambda: durable.lock(folder).__enter__())
