"""Draw accuracies in a terminal of 80 columns, a bar for each class. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence

from rich.cells import cell_len, set_cell_size

from promptcl.cli.errors import printable

_WIDTH = 30  # cells of a full bar
_MOST = 40  # lines; of more classes the worst are shown


def bars(counts: Mapping[str, tuple[int, int]], before: Mapping[str, tuple[int, int]] | None = None) -> list[str]:
    """A line for each class from its right answers and images; `before`, the same from earlier, is shown at its end.

    Of more than 40 classes the worst 40 are shown, in the order given.
    """
    shown = list(counts)
    if len(shown) > _MOST:
        worst = set(sorted(shown, key=lambda name: _share(counts[name]))[:_MOST])
        shown = [name for name in shown if name in worst]
    room = min(24, max((cell_len(name) for name in shown), default=0))
    lines = [_line(name, room, counts[name], (before or {}).get(name)) for name in shown]
    hidden = len(counts) - len(shown)
    return [*lines, f"and {hidden} more classes, none of them worse"] if hidden else lines


def _share(count: tuple[int, int]) -> float:
    return count[0] / max(1, count[1])


def _percent(count: tuple[int, int]) -> int:
    """Halves are rounded up, as the page of `promptcl serve` does and most people expect."""
    return int(100 * _share(count) + 0.5)


def _line(name: str, room: int, count: tuple[int, int], before: tuple[int, int] | None) -> str:
    share = _share(count)
    end = "" if before is None else f"  was {_percent(before)} %"
    return f"{_name(name, room)} {bar(share)} {_percent(count):3} %{count[0]:>6}/{count[1]}{end}"


def _name(name: str, room: int) -> str:
    """The name in exactly `room` cells, cut with `~` where it is longer."""
    return set_cell_size(name, room) if cell_len(name) <= room else set_cell_size(name, room - 1) + "~"


def bar(share: float) -> str:
    """A bar of 30 cells with `share` (0 to 1) of it filled, in eighths of a cell where the terminal can show them."""
    eighths = round(share * _WIDTH * 8)
    full, rest = divmod(eighths, 8)
    if not _unicode():
        return "#" * full + "." * (_WIDTH - full)
    return ("█" * full + " ▏▎▍▌▋▊▉"[rest] * (rest > 0)).ljust(_WIDTH)


def _unicode() -> bool:
    """Whether the terminal can show the characters of a fine bar."""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of two columns, the first as wide as its longest text."""
    width = max((len(key) for key, _ in rows), default=0)
    return [f"{key:<{width}}  {value}" for key, value in rows]


def note(sentence: str, kind: str = "note") -> None:
    """Print on stderr what is no answer and no error: something was left out, or may be a mistake."""
    print(f"{kind}: {printable(sentence)}", file=sys.stderr)


def count(number: int, noun: str) -> str:
    """The number with its noun: 1 image, 2 images, 2 classes."""
    return f"{number} {noun if number == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def some(names: Collection[str], most: int = 5) -> str:
    """At most so many of the names, sorted, as text, and how many more there are."""
    return ", ".join(sorted(names)[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def unknown_below(threshold: float | None, images: int) -> str:
    """What is called `unknown`, as part of a sentence, by a calibration on so many images."""
    if threshold is None:
        few = "fewer than 20 images left out of a task's learning were answered right"
        return f"never said: {few} (of {count(images, 'image')} in all)"
    return f"said of images less familiar than {threshold:.2f}, as 5 % of right answers are"
