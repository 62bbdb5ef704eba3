"""Turn an error of any command into one line on stderr and an exit code. Imports no torch."""

from __future__ import annotations

import errno
import functools
import signal
import sys
from collections.abc import Callable

import typer

from promptcl.errors import UserError

ended_by: list[int] = []
"""The signal that asked this process to end, once one has."""


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Turn bad input, full disks and full memory into one line on stderr and exit code 2, Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def wrapper(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the reader of our output went away; typer ends quietly
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not ended_by:
                ended_by.append(getattr(error, "number", signal.SIGINT))
            # Asked to end while it is imported, a library may raise anything instead of KeyboardInterrupt.
            if ended_by and not isinstance(error, typer.Exit):
                print("interrupted", file=sys.stderr)
                raise typer.Exit(128 + ended_by.pop()) from None  # as a shell has it: 130 after Ctrl-C
            explained(error)
            raise

    return wrapper


def explained(error: BaseException) -> None:
    """End with a sentence and exit code 2 where `error` is bad input, a full disk or full memory."""
    if isinstance(error, UserError):
        *others, last = getattr(error, "sentences", [str(error)])  # of bad images one each
        for sentence in others:
            print(f"error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
        fail(last)
    if isinstance(error, OSError):
        fail(explain(error))
    if isinstance(error, MemoryError | RuntimeError | ImportError) and out_of_memory(error):
        fail(
            f"out of memory ({(str(error).splitlines() or ['no more to be had'])[0][:200]}); "
            "lower train.batch_size, eval.batch_size, data.cache_mb or backbone.image_size, or write "
            "backbone.precision=bf16"
        )


def fail(sentence: str) -> None:
    """Print `error: sentence` on stderr and exit with code 2."""
    print(f"error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    raise typer.Exit(2)


def printable(text: str) -> str:
    """Escape what a terminal would act on or could not show: file and class names may come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def out_of_memory(error: Exception) -> bool:
    """Whether Python's memory, a GPU's, or torch's on the CPU (a plain RuntimeError) has run out."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    # By name: nothing here may import torch.
    texts = ("DefaultCPUAllocator", "failed to map segment", "std::bad_alloc", "can't start new thread")
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or any(text in str(error) for text in texts)


def explain(error: OSError) -> str:
    """One sentence for an operating-system error."""
    where = error.filename or "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: no disk space left; free some, or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}: no permission ({error.strerror}); write elsewhere"
    return f"{where}: {error.strerror}" if error.strerror else str(error)
