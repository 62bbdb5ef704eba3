"""Show how many images were read before the first step, where that takes long. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PATIENCE = 1.0  # seconds before anything is shown


class ReadingBar:
    """A bar that a terminal shows while images are read for the first time; it is gone then. Elsewhere nothing."""

    def __init__(self, console: Console | None, clock: Callable[[], float] = time.monotonic) -> None:
        """console: where to show it, if that is a terminal; None shows nothing. clock: counts seconds."""
        self._console = console if console is not None and console.is_terminal else None
        self._clock = clock
        self._since: float | None = None
        self._bar: Progress | None = None

    def tell(self, done: int, of: int) -> None:
        """`done` images are read, of so many."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if self._bar is None and self._console is not None and now - self._since >= _PATIENCE and done < of:
            columns = (TextColumn("reading images"), BarColumn(bar_width=None), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._bar.add_task("", total=of)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=of)
        if done >= of:
            self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._since = None, None
