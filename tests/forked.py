"""Run a function in a process of its own, forked from the test's: it may be killed, limited, or lose its rights."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptcl.errors import UserError


def in_child(work: Callable[[], object]) -> str:
    """What `work` did: `done`, `killed`, or the text of its UserError. Anything else it raises fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            said = "done"
        except UserError as error:
            said = str(error)
        except BaseException as error:
            said = f"CRASH {error!r}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert not said.startswith("CRASH"), said
    return "killed" if status == signal.SIGKILL else said


def after_operation(number: int, act: Callable[[], None]) -> None:
    """From now on, `act` comes right before the file operation `number` (from 1) of this process.

    Each write that reaches the system is one, so that files are left cut off too.
    """
    left = number

    def wrap(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                act()
            return function(*args, **kwargs)

        return wrapped

    class Raw(io.FileIO):
        write = wrap(io.FileIO.write)

    opened = Path.open

    def open_watched(path: Path, mode: str = "r", **how: Any) -> Any:
        return io.BufferedWriter(Raw(path, mode[0])) if mode in ("wb", "xb") else opened(path, mode, **how)

    os.fsync, os.replace = wrap(os.fsync), wrap(os.replace)
    Path.open, Path.unlink = wrap(open_watched), wrap(Path.unlink)  # type: ignore[method-assign]
