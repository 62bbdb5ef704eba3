"""Run a function in a process of its own, forked from the test's: it may be killed, limited, or lose its rights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

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
