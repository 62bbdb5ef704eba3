"""Keep what a decoder remarks on an image with that image, in threads too.

`warnings.catch_warnings` changes the whole process: two threads that use it get each other's warnings, and may leave
the filters changed for good. So the process is told once for all threads, while any of them decodes.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from PIL import Image

_MODULES = r"PIL\.|pillow_heif|promptcl\.data\."  # whose warnings are remarks on an image


class Remark(NamedTuple):
    """A warning of a decoder."""

    message: Warning | str
    category: type[Warning]
    filename: str
    line: int

    def __str__(self) -> str:
        """What it says, in one line."""
        return " ".join(str(self.message).split())


class _Present(threading.local):
    """The remarks in this thread; None where nobody collects them."""

    said: list[Remark] | None = None


_present, _lock = _Present(), threading.Lock()
_users = 0
_installed = contextlib.ExitStack()
_usual: Any = warnings.showwarning


@contextlib.contextmanager
def remarks() -> Iterator[list[Remark]]:
    """Context that collects the warnings of decoders in this thread, instead of their being shown or raised."""
    said: list[Remark] = []
    before, _present.said = _present.said, said
    try:
        with _listening():
            yield said
    finally:
        _present.said = before


@contextlib.contextmanager
def no_bombs() -> Iterator[None]:
    """Context in which Pillow does not warn of many pixels: there is a limit of our own. Other warnings come after."""
    with remarks() as said:
        yield
    others = [one for one in said if not issubclass(one.category, Image.DecompressionBombWarning)]
    if _present.said is not None:
        _present.said += others
    else:
        for one in others:
            module = ".".join(Path(one.filename).with_suffix("").parts[-2:])  # by which filters know it
            warnings.warn_explicit(str(one.message), one.category, one.filename, one.line, module)


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Have every warning of a decoder come to `_hear`, from the first thread that listens to the last."""
    global _users, _installed, _usual
    with _lock:
        # Somebody else's `catch_warnings` may have put back what it found, which was ours.
        if not _users and warnings.showwarning is not _hear:
            _installed = contextlib.ExitStack()
            _installed.enter_context(warnings.catch_warnings())
            _usual = warnings.showwarning
            warnings.filterwarnings("always", module=_MODULES)
            warnings.showwarning = _hear
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _installed.close()


def _hear(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Stand for `warnings.showwarning`: keep a warning for the image that this thread decodes, or show it."""
    if _present.said is not None:
        _present.said.append(Remark(message, category, filename, lineno))
    else:
        _usual(message, category, filename, lineno, file, line)
