"""Run a function or a command in a process of its own, forked from the test's, which has imported torch already.

It may be killed, limited, or lose its rights, and it may change what belongs to a process: folder, path, modules.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
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


def command(words: list[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`promptcl words` in the folder `cwd`, as an installed command has it: that folder is not on Python's path."""

    def main() -> None:
        sys.path = [path for path in sys.path if path]
        sys.argv = ["promptcl", *words]
        importlib.import_module("promptcl.cli.main").main()

    return run(main, cwd, environment)


def program(code: str, cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`python -c code` in the folder `cwd`."""
    return run(lambda: exec(compile(code, "<string>", "exec"), {"__name__": "__main__"}), cwd, environment)


def run(work: Callable[[], object], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What `work` writes and how it ends in the folder `cwd`, within ten minutes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            signal.alarm(600)
            os.chdir(cwd)
            os.environ.update(environment)
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w"), encoding="utf-8") for number in (1, 2))
            code = _code(work)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([], os.waitstatus_to_exitcode(status), *said)


def _code(work: Callable[[], object]) -> int:
    """The exit code of a program that does `work`."""
    try:
        work()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


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
