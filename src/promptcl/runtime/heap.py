"""Memory that was freed, handed back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _found() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # as on Windows
        return None
    return trim


_trim = _found()


def hand_back() -> None:
    """Hand back what was freed, where the C library can (glibc), in some milliseconds; elsewhere do nothing.

    glibc has a heap for each thread, which shrinks only from its end: one small thing that stays there keeps all that
    was freed below it. A process that computes in several threads so takes ever more, though it holds no more.
    """
    if _trim is not None:
        _trim(0)
