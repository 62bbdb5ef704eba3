"""A lock that lets one process at a time write to a folder; the system releases it when the process ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from promptcl.errors import UserError
from promptcl.store.files import explained, make_folder

try:
    import fcntl
except ImportError:  # Windows: no lock, so two writers are not noticed there
    fcntl = None  # type: ignore[assignment]

_PROCESS = uuid.uuid4().hex  # process ids repeat between containers that share a folder


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` (made if need be), so that no other process writes to it.

    A thread that has the lock may take it again. Raises UserError naming the process that has it.
    """
    if (folder / ".lock").is_symlink():  # a store from elsewhere could make us overwrite any file
        raise UserError(f"{folder / '.lock'} is a link, expected a file of the store; remove it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder, or the path of a new one")
    fresh = not folder.exists()
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    with explained(folder):
        make_folder(folder)
        file = os.open(folder / ".lock", flags, 0o644)
    mine = False
    try:
        with explained(folder):
            mine = _take(folder, file)
        yield
    finally:
        if mine:
            os.ftruncate(file, 0)  # or this thread would find its name there until the next holder writes its own
        if mine and fresh and os.listdir(folder) == [".lock"]:  # nothing was saved
            with contextlib.suppress(OSError):
                (folder / ".lock").unlink()
                folder.rmdir()
        os.close(file)


def _take(folder: Path, file: int) -> bool:
    """Take the lock and write into it who has it now; False where this thread has it already."""
    me = {"process": os.getpid(), "host": socket.gethostname(), "thread": threading.get_ident(), "token": _PROCESS}
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            holder = json.loads(os.pread(file, 4096, 0))
            if {key: holder.get(key) for key in me} == me:
                return False
            who = f"process {holder['process']} on {holder['host']} since {holder['since']}"
        except (ValueError, KeyError, AttributeError):  # the holder has not written its name yet
            who = "another process"
        raise UserError(f"{folder} is being written by {who}: wait until it is done") from None
    if not os.fstat(file).st_nlink:
        raise UserError(f"{folder} was removed by another process just now; try again")
    os.ftruncate(file, 0)
    os.write(file, json.dumps({**me, "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode())
    return True
