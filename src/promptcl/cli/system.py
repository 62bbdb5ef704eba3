"""Make the streams and signals of this process fit for a command: nothing in them ends in a traceback."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from promptcl.cli.errors import explain, printable
from promptcl.errors import UserError
from promptcl.runtime import processes

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Terminated(KeyboardInterrupt):
    """The system asked this process to end; as after Ctrl-C, what was begun is taken back on the way out."""

    def __init__(self, number: int) -> None:
        """number: of the signal."""
        super().__init__(number)
        self.number = number


def heed_signals() -> None:
    """Turn SIGTERM and SIGHUP into `Terminated`, where nobody else has said what they mean (nohup does).

    Not under torchrun, which ends a process that way that hangs in an exchange and would never see an exception.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and processes.wanted() == 1 and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def ready_streams() -> None:
    """Open what was closed (`>&-`) as an empty file, and have what an encoding lacks printed as escapes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # A file that is opened later would get its number, and the output.
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_memory() -> None:
    """Refuse an address space (`ulimit -v`) that has no room for torch. Raises UserError.

    Its libraries map about three times the size of their files; where they cannot, some of them end the process.
    """
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    found = importlib.util.find_spec("torch")
    if limit == resource.RLIM_INFINITY or found is None or found.origin is None:
        return
    needed = 3 * sum(file.stat().st_size for file in (Path(found.origin).parent / "lib").glob("*.so*"))
    if limit < needed:
        raise UserError(
            f"this process may use {limit / 1e9:.1f} GB of addresses (ulimit -v) and torch alone needs "
            f"{needed / 1e9:.1f}; write ulimit -v unlimited"
        )


def flush() -> None:
    """Write out what was printed; where nobody takes it any more, say so in one sentence, and not at exit.

    Raises SystemExit: 1 where the reader went away, as after `head`; 2 where a disk is full.
    """
    failed = bool(getattr(sys.exc_info()[1], "code", 1) if sys.exc_info()[1] is not None else 0)
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at its exit, and complain there.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        if failed:  # and the sentence that says why was printed
            return
        error.filename = error.filename or "the output"
        with contextlib.suppress(OSError):
            print(f"error: {printable(explain(error))}", file=sys.stderr)
        sys.exit(2)
