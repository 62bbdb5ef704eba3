"""Parts that figures are made of: a drawing as SVG text and PNG bytes, heat maps, bars. Needs matplotlib, no torch."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
INK = "#010203"
"""Colour of text and axes; in the SVG it becomes the colour of the page's text, light or dark."""
COLOURS = ["#3b82c4", "#e0822c", "#3a9d5d", "#d1495b", "#8e6bbf", "#a0714f", "#d56fae", "#808891", "#9a9a2b", "#2aa5b8"]
WIDTH = 4.5  # inches: text stays readable when a phone shrinks the figure to its width
MOST_CELLS = 12  # more columns than this leave no room for numbers in the cells
MOST_NAMES = 30  # more rows than this are not named one by one
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "promptcl",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{key: INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
}


@dataclass(frozen=True)
class Drawing:
    """A drawn figure as SVG and PNG, with what it shows in words."""

    name: str
    """Name of the PNG file, without `.png`."""
    title: str
    alt: str
    """What it shows, in words with the main numbers."""
    svg: str
    png: bytes


@dataclass(frozen=True)
class Bar:
    """One bar of a figure, in percent or as a count."""

    label: str
    value: float
    text: str
    """The value as it is written beside the bar."""
    colour: int = 0
    """Its number in COLOURS."""
    points: tuple[float, ...] = ()
    """Values that the bar is the mean of, each a dot."""


def drawing(name: str, title: str, alt: str, height: float, draw: Callable[[Figure], None]) -> Drawing:
    """Call `draw` on an empty figure of the common width and `height` inches, and write it as SVG and PNG."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # only the PNG shows a box for it
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=metadata, dpi=200)
        figure.savefig(png, format="png", facecolor="white", dpi=180)
    return Drawing(name, title, alt, inline(svg.getvalue(), name, alt), png.getvalue())


def inline(svg: str, name: str, alt: str) -> str:
    """Make an SVG fit for a page with several: ids of its own, the page's text colour, fluid width, a label."""
    assert re.fullmatch("[A-Za-z0-9-]+", name), name  # it stands in attributes, and in the name of a file
    svg = re.sub(r'(\bid="|url\(#|href="#)', lambda match: f"{match[1]}{name}-", svg[svg.index("<svg") :])
    svg = svg.replace(INK, "currentColor")
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]}>'
    return head + svg[svg.index(">") + 1 :]


def heat(axes: Axes, values: Array, limits: tuple[float, float], rows: Sequence[str], columns: Sequence[str]) -> Any:
    """Draw a heat map with colours for the values between `limits`, and numbers in its cells where there is room.

    Rows go downwards. Numbers as names are thinned out; long names of columns are turned.
    """
    low, high = limits
    image = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        named = not all(name.isdigit() for name in names) and len(names) <= MOST_NAMES
        step = 1 if named else next(s for s in (1, 2, 5, 10, 20, 50, 100, 10**6) if len(names) / s <= 10.5)
        ticks = [i for i in range(len(names)) if (i + 1) % step == 0 or (i == 0 and step > 2)]
        axis.set_ticks(ticks, [short(names[i], 16) for i in ticks])
        if named and axis is axes.xaxis:
            axes.tick_params(axis="x", rotation=tilt(names))
    if has_cells(values):
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value - low < 0.45 * (high - low) else "black"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    return image


def has_cells(values: Array) -> bool:
    """Whether a heat map of these values has room for numbers."""
    rows, columns = values.shape
    return bool(columns <= MOST_CELLS and rows <= 2 * MOST_CELLS)


def heat_height(rows: int, most: float, columns: Sequence[str] = ()) -> float:
    """Height in inches of a heat map with `rows` rows and names of its columns, at most `most` without the names."""
    text = 0.07 * min(16, max(map(len, columns))) if columns and tilt(columns) else 0
    return min(most, max(2.2, 1.2 + 0.3 * rows)) + text


def tilt(names: Sequence[str]) -> int:
    """By how many degrees names below an axis are turned: none where they fit beside one another."""
    numbers = all(name.isdigit() for name in names)
    return 90 if not numbers and min(16, max(map(len, names))) * len(names) > 36 else 0


def bars(name: str, title: str, alt: str, rows: Sequence[Bar], limits: tuple[float, float], unit: str) -> Drawing:
    """Draw a bar for each row, from the top, with its label and its value in words: beside it, or above where long."""
    labels = [short(row.label, 44) for row in rows]
    beside = max(map(len, labels)) <= 16
    base = max(0.0, limits[0])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.7 if beside else 0.34
        for i, row in enumerate(rows):
            colour = COLOURS[row.colour % len(COLOURS)]
            axes.barh(i, row.value - base, left=base, height=width, color=colour)
            if row.points:
                axes.plot(row.points, [i] * len(row.points), "o", ms=4, color=INK, alpha=0.7, clip_on=False)
            at = i if beside else i - 0.37
            text: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
            axes.text(1.02 if beside else 1.0, at, row.text, ha="left" if beside else "right", **text)
            if not beside:
                axes.text(0.01, at, labels[i], ha="left", **text)
        axes.set_yticks(range(len(rows)), labels if beside else [""] * len(rows))
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=limits, ylim=(len(rows) - 0.5, -0.5 if beside else -0.75), xlabel=unit)
        axes.grid(axis="x", color="#808080", alpha=0.3, lw=0.6)
        axes.set_axisbelow(True)

    return drawing(name, title, alt, 0.7 + (0.22 if beside else 0.46) * len(rows) + 0.1, draw)


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Places for texts that belong to `values`: as near as they can be, at least `gap` from one another."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[tuple[float, list[int]]] = []  # centre, and who stands around it
    for i in order:
        groups.append((values[i], [i]))
        while len(groups) > 1:
            (left, one), (right, two) = groups[-2:]
            if right - left >= gap * (len(one) + len(two)) / 2:
                break
            members = one + two
            groups[-2:] = [((left * len(one) + right * len(two)) / len(members), members)]
    places = [0.0] * len(values)
    for centre, members in groups:
        for n, i in enumerate(members):
            places[i] = centre + gap * (n - (len(members) - 1) / 2)
    return places


def short(label: str, width: int = 44) -> str:
    """`label` cut to `width` characters that can be seen."""
    text = seen(label)
    if len(text) <= width:
        return text
    cut = textwrap.shorten(text, width, placeholder="…") if " " in text[:width] else ""
    return cut if len(cut) > width // 2 else text[: width - 1] + "…"


def seen(text: str) -> str:
    """Text in which characters that cannot be seen are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
