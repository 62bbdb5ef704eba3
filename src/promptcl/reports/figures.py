"""Draw the figures of a report with matplotlib, as SVG text and PNG bytes. Needs the extra `report`; imports no torch.

T tasks, M prompts, E micro-tasks, K classes. Missing values are NaN.
"""

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
from matplotlib.ticker import MaxNLocator

Array = npt.NDArray[np.float64]
INK = "#010203"
"""Colour of text and axes; in the SVG it becomes the colour of the page's text, light or dark."""
COLOURS = ["#3b82c4", "#e0822c", "#3a9d5d", "#d1495b", "#8e6bbf", "#a0714f", "#d56fae", "#808891", "#9a9a2b", "#2aa5b8"]
MARKERS = "osD^vP*X"
WIDTH = 5.0  # inches: text stays readable when a phone shrinks the figure to its width
MOST_CELLS = 12  # more columns than this leave no room for numbers in the cells
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
class Curve:
    """One line of a comparison: a value after each task, for each seed."""

    index: int
    """Number of its group; decides colour and marker, the same in every figure."""
    label: str
    steps: list[int]
    """Tasks learned at each point, [T]."""
    values: Array
    """The value of each seed at each point, [seeds, T]."""
    whole: bool = False
    """Learned all tasks at once: T is 1 and the line is level."""


def drawing(name: str, title: str, alt: str, height: float, draw: Callable[[Figure], None]) -> Drawing:
    """Call `draw` on an empty figure of the common width and `height` inches, and write it as SVG and PNG."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # only the PNG shows a box for it
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=metadata, dpi=200)
        figure.savefig(png, format="png", facecolor="white", dpi=160)
    return Drawing(name, title, alt, inline(svg.getvalue(), name, alt), png.getvalue())


def inline(svg: str, name: str, alt: str) -> str:
    """Make an SVG fit for a page with several: ids of its own, the page's text colour, fluid width, a label."""
    svg = re.sub(r'(\bid="|url\(#|href="#)', lambda match: f"{match[1]}{name}-", svg[svg.index("<svg") :])
    svg = svg.replace(INK, "currentColor")
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink" {size[0]}>'
    return head + svg[svg.index(">") + 1 :]


def heat(axes: Axes, values: Array, top: float, names: Sequence[int] = ()) -> Any:
    """Draw a heat map with colours for 0..top, and numbers in its cells where there is room.

    Rows go downwards, numbered from 1 or as `names`; columns are numbered from 1.
    """
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    rows, columns = values.shape
    axes.spines[:].set_visible(False)
    for axis, numbers in ((axes.xaxis, range(1, columns + 1)), (axes.yaxis, names or range(1, rows + 1))):
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 10**6) if len(numbers) / s <= 10.5)
        ticks = [i for i in range(len(numbers)) if (i + 1) % step == 0 or (i == 0 and step > 2)]
        axis.set_ticks(ticks, [str(numbers[i]) for i in ticks])
    if columns <= MOST_CELLS and rows <= 2 * MOST_CELLS:
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value < 0.45 * top else "black"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    return image


def heat_height(rows: int, most: float) -> float:
    """Height in inches of a heat map with `rows` rows, at most `most`."""
    return min(most, max(2.2, 1.2 + 0.3 * rows))


def accuracy_matrix(name: str, title: str, alt: str, matrix: Array) -> Drawing:
    """Draw the accuracies [T, T] in percent: row t after learning task t, column i on task i."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = heat(axes, matrix, 100)
        axes.set(xlabel="test set of task", ylabel="after learning task")
        figure.colorbar(image, label="accuracy (%)")

    return drawing(name, title, alt, heat_height(len(matrix), 4.2), draw)


def prompt_selections(name: str, title: str, alt: str, shares: Array, entropy: Array, tasks: Sequence[int]) -> Drawing:
    """Draw what share of a task's selections each prompt has, [T, M] in percent, and their entropy [T] in bits.

    `tasks` are the numbers of the rows.
    """

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 1))
        image = heat(left, shares, float(np.nanmax(shares)), tasks)
        left.set(xlabel="prompt", ylabel="task")
        rows = np.arange(len(entropy))
        right.barh(rows, np.nan_to_num(entropy), height=0.7, color=COLOURS[0])
        most = max(float(np.log2(shares.shape[1])), 0.1)
        right.set(xlim=(0, most), xlabel="entropy\n(bits)")
        right.set_xticks([0, most], ["0", f"{most:.1f}"])
        right.tick_params(left=False)
        right.spines["left"].set_visible(False)
        figure.colorbar(image, ax=[left, right], label="% of selections")

    return drawing(name, title, alt, heat_height(len(shares), 4.2), draw)


def curves(name: str, title: str, alt: str, ylabel: str, lines: Sequence[Curve]) -> Drawing:
    """Draw the mean over seeds of a value after each task, with a band of one standard deviation."""
    legend = len(lines) > 1

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        last = max(line.steps[-1] for line in lines)
        for line in lines:
            i, mean = line.index, line.values.mean(axis=0)
            colour = COLOURS[i % len(COLOURS)]
            style: dict[str, Any] = {"color": colour, "label": short(line.label)}
            if line.whole:
                axes.axhline(float(mean[0]), ls=":", **style)
                continue
            marker = MARKERS[i % len(MARKERS)] if len(mean) <= 2 * MOST_CELLS else None
            axes.plot(line.steps, mean, marker=marker, ms=4, ls=["-", "--"][i // len(COLOURS) % 2], **style)
            if len(line.values) > 1:
                spread = line.values.std(axis=0, ddof=1)
                axes.fill_between(line.steps, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
        axes.set(xlabel="tasks learned", ylabel=ylabel)
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(at_least_two(axes.get_ylim()))
        axes.grid(color="#808080", alpha=0.3, lw=0.6)
        if legend:
            figure.legend(loc="outside lower left", frameon=False)

    return drawing(name, title, alt, 3.0 + 0.22 * len(lines) * legend, draw)


def finals(name: str, title: str, alt: str, xlabel: str, lines: Sequence[Curve]) -> Drawing:
    """Draw the last value of each line: a dot for each seed, and mean with standard deviation."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, line in enumerate(lines):
            last, colour = line.values[:, -1], COLOURS[line.index % len(COLOURS)]
            axes.plot(last, np.full(len(last), i), "o", ms=4, color=colour, alpha=0.6)
            spread = last.std(ddof=1) if len(last) > 1 else 0.0
            axes.errorbar(last.mean(), i, xerr=spread, fmt="|", ms=14, capsize=4, color=colour)
        axes.set_yticks(range(len(lines)), [short(line.label, 24) for line in lines])
        axes.set(xlabel=xlabel, ylim=(len(lines) - 0.5, -0.5), xlim=at_least_two(axes.get_xlim()))
        axes.grid(axis="x", color="#808080", alpha=0.3, lw=0.6)

    return drawing(name, title, alt, 1.2 + 0.3 * len(lines), draw)


def schedule(name: str, title: str, alt: str, drawn: Array, expected: Array) -> Drawing:
    """Draw a stream without task boundaries: probability [E, K] of drawn classes, expected number of classes [E]."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        micro_tasks = np.arange(1, len(drawn) + 1)
        extent = (0.5, len(drawn) + 0.5, drawn.shape[1] + 0.5, 0.5)
        image = upper.imshow(
            drawn.T, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent
        )
        upper.spines[:].set_visible(False)
        upper.set(ylabel="class")
        upper.tick_params(bottom=False)
        figure.colorbar(image, ax=[upper, lower], label="probability of a drawn class")
        lower.plot(micro_tasks, (~np.isnan(drawn)).sum(axis=1), ".", ms=3, color=COLOURS[1], label="drawn")
        lower.plot(micro_tasks, expected, color=COLOURS[0], label="expected")
        lower.set(xlabel="micro-task", ylabel="classes", ylim=(0, None))
        lower.legend(frameon=False, ncols=2, fontsize=8)
        lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return drawing(name, title, alt, 4.6, draw)


def at_least_two(limits: tuple[float, float]) -> tuple[float, float]:
    """Widen the limits of an axis in percent to two points: rounding errors must not look like differences."""
    low, high = limits
    return (low, high) if high - low >= 2 else (low - 1, high + 1)


def short(label: str, width: int = 44) -> str:
    """`label` cut to `width` characters."""
    return textwrap.shorten(label, width, placeholder="…") if " " in label[:width] else label[:width]
