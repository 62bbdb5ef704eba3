"""Show a comparison of methods while it runs: a row for each, and a bar for the one that runs. Imports no torch."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from promptcl.config import Config
from promptcl.experiments.compare import Entry, Row
from promptcl.experiments.progress import percent
from promptcl.experiments.reading import ReadingBar

_WIDEST = 28  # characters of a method in the table
_COLUMNS = {"last_accuracy": "last", "average_incremental_accuracy": "A-bar", "forgetting": "forgetting"}
HEAD = f"{''.join(f'{name:>13}' for name in _COLUMNS.values())}    trained   stored  train/s   test/s  passes"
LEGEND = (
    "last: average accuracy after the last task (A_T), %; A-bar: its mean over all tasks, %;\n"
    "trained: numbers; train/s, test/s: images a second; passes: of a test image through the ViT"
)


class Table:
    """The table in the terminal; `live`: with a bar for what runs."""

    def __init__(self, entries: list[Entry], live: bool) -> None:
        """Print nothing yet."""
        self._width = min(_WIDEST, max(len(entry.name) for entry in entries))
        self._console = Console()
        self._begun = False
        self._bar: Bar | None = None
        self._live = live

    def ui(self, entry: Entry, seed: int) -> Bar:
        """A bar for the run of one seed of a method."""
        self._begin()
        self.close()
        self._bar = Bar(f"{entry.name}, seed {seed}", self._console, self._live)
        return self._bar

    def row(self, row: Row) -> None:
        """Print the row of a method."""
        self._begin()
        self.close()
        for line in self.lines(row):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def lines(self, row: Row) -> list[str]:
        """The row of a method as lines; a name that is too long has one of its own."""
        name = row["method"]
        head = [] if len(name) <= self._width else [name]
        start = f"{'' if head else name:<{self._width}}"
        if "failed" in row:
            return [*head, f"{start}  failed: {row['failed']}"]
        cells = [f"{_spread(row[key]):>13}" for key in _COLUMNS]
        sizes = f"{row['trained_parameters']:>11,} {_bytes(row['stored_bytes']):>8}"
        speeds = [f"{row[f'{kind}_images_per_second']:>8.1f}" for kind in ("train", "eval")]
        published = f"  published {row['published']}" if "published" in row else ""
        return [*head, f"{start}{''.join(cells)}{sizes} {' '.join(speeds)}  {row['passes'] or '-'}{published}"]

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _begin(self) -> None:
        if not self._begun:
            self._console.print(f"{'':<{self._width}}{HEAD}", markup=False, highlight=False, soft_wrap=True)
        self._begun = True


class Bar:
    """One run as a bar: method, seed, task, steps."""

    def __init__(self, name: str, console: Console, live: bool) -> None:
        """`name` of the run; without `live` only warnings are shown."""
        self._name, self._console, self._total = name, console, 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, console=console, disable=not (live and console.is_terminal), transient=True)
        self._bar = self._progress.add_task(name, total=None)
        self.reading = ReadingBar(console if live else None).tell

    def start(self, total_tasks: int, config: Config) -> None:
        """Show the bar."""
        self._total = total_tasks
        self._progress.start()

    def task(self, index: int, name: str) -> None:
        """Say which task is learned."""
        self._progress.reset(self._bar, description=f"{self._name}, task {index + 1}/{self._total}: learning")

    def stage(self, number: int, steps: int) -> None:
        """Let the bar count the steps of this stage."""
        self._progress.reset(self._bar, total=steps)

    def step(self) -> None:
        """Move the bar."""
        self._progress.update(self._bar, advance=1)

    def evaluating(self, name: str) -> None:
        """Say that test images are predicted."""
        self._progress.update(self._bar, description=f"{self._name}: evaluating")

    def warn(self, text: str) -> None:
        """Print the warning between the rows."""
        self._console.print(f"warning: {self._name}: {text}", markup=False, highlight=False, soft_wrap=True)

    def task_done(self, record: dict[str, Any]) -> None:
        """Say how good it is so far."""
        accuracy = percent(record["average_accuracy"])
        self._progress.update(
            self._bar, description=f"{self._name}, task {record['task'] + 1}/{self._total}: {accuracy} %"
        )

    def finished(self, results: dict[str, Any]) -> None:
        """Take the bar off the screen."""
        self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._progress.stop()


def _spread(found: dict[str, float | None] | None) -> str:
    """Mean, with the standard deviation behind it where there is one."""
    if found is None:
        return "-"
    deviation = found["std"]
    return f"{found['mean']:.2f}" + ("" if deviation is None else f" ±{deviation:.2f}")


def _bytes(number: int | None) -> str:
    """A size with a fitting unit."""
    if not number:
        return "-" if number is None else "0"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"
