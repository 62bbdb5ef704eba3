"""Draw the figures of a report of runs with matplotlib. Needs the extra `report`; imports no torch.

T tasks, M prompts, E micro-tasks, K classes. Missing values are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from promptcl.reports.drawing import (
    COLOURS,
    MOST_CELLS,
    Array,
    Bar,
    Drawing,
    apart,
    bars,
    drawing,
    has_cells,
    heat,
    heat_height,
    short,
    tilt,
)

MARKERS = "osD^vP*X"
MOST_LABELS = 8  # more lines than this leave no room for their last values


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


def accuracy_matrix(
    name: str, title: str, alt: str, matrix: Array, rows: Sequence[str], columns: Sequence[str], zoom: bool = False
) -> Drawing:
    """Draw the accuracies [T, T] in percent: row t after learning task t, column i on task i."""
    limits = fitted(matrix) if zoom else (0.0, 100.0)
    named = not all(one.isdigit() for one in columns)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = heat(axes, matrix, limits, rows, columns)
        axes.set(xlabel="test set" if named else "test set of task", ylabel="after learning" + " task" * (not named))
        if zoom or not has_cells(matrix):
            figure.colorbar(image, label="accuracy (%)")

    return drawing(name, title, alt, heat_height(len(matrix), 4.2, columns), draw)


def prompt_selections(name: str, title: str, alt: str, shares: Array, entropy: Array, tasks: Sequence[str]) -> Drawing:
    """Draw what share of a task's selections each prompt has, [T, M] in percent, and their entropy [T] in bits.

    `tasks` are the names of the rows.
    """
    columns = [str(prompt + 1) for prompt in range(shares.shape[1])]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 1))
        image = heat(left, shares, (0.0, float(np.nanmax(shares))), tasks, columns)
        left.set(xlabel="prompt (cells: % of selections)" if has_cells(shares) else "prompt", ylabel="task")
        rows = np.arange(len(entropy))
        right.barh(rows, np.nan_to_num(entropy), height=0.7, color=COLOURS[0])
        most = max(float(np.log2(shares.shape[1])), 0.1)
        right.set(xlim=(0, most), xlabel="entropy\n(bits)")
        right.set_xticks([0, most], ["0", f"{most:.1f}"])
        right.tick_params(left=False)
        right.spines["left"].set_visible(False)
        if not has_cells(shares):
            figure.colorbar(image, ax=[left, right], label="% of selections")

    return drawing(name, title, alt, heat_height(len(shares), 4.2), draw)


def curves(
    name: str, title: str, alt: str, lines: Sequence[Curve], tasks: Sequence[str] = (), zoom: bool = False
) -> Drawing:
    """Draw the mean over seeds of a percentage after each task, with a band of one standard deviation.

    `tasks` names what was learned at steps 1, 2, ...; without names they are numbered.
    """
    legend = len(lines) > 1
    turned = 0.07 * min(16, max(map(len, tasks))) if tasks and tilt(tasks) else 0

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        last = max(line.steps[-1] for line in lines)
        for line in lines:
            _line(axes, line)
        axes.set_xlim(0.5, last + 0.5)
        if tasks:
            axes.set_xticks(range(1, len(tasks) + 1), [short(task, 16) for task in tasks], rotation=tilt(tasks))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        means = np.concatenate([line.values.mean(axis=0) for line in lines])
        axes.set_ylim(fitted(np.array(axes.get_ylim())) if zoom else limits(means))
        axes.set(xlabel="learned so far" if tasks else "tasks learned", ylabel="%")
        axes.grid(color="#808080", alpha=0.3, lw=0.6)
        _values(axes, lines, last)
        if legend:
            figure.legend(loc="outside lower left", frameon=False)

    height = 2.8 + 0.22 * len(lines) * legend + turned
    return drawing(name, title, alt, height, draw)


def _line(axes: Axes, line: Curve) -> None:
    i, mean = line.index, line.values.mean(axis=0)
    colour = COLOURS[i % len(COLOURS)]
    style: dict[str, Any] = {"color": colour, "label": short(line.label, 40)}
    if line.whole:
        axes.axhline(float(mean[0]), ls=":", **style)
        return
    marker = MARKERS[i % len(MARKERS)] if len(mean) <= 2 * MOST_CELLS else None
    dashes = ["-", "--"][i // len(COLOURS) % 2]
    axes.plot(line.steps, mean, marker=marker, ms=4, ls=dashes, clip_on=False, **style)
    if len(line.values) > 1:
        spread = line.values.std(axis=0, ddof=1)
        axes.fill_between(line.steps, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)


def _values(axes: Axes, lines: Sequence[Curve], last: int) -> None:
    """Write values beside the lines: each one of a single short line, else the last of each."""
    low, high = axes.get_ylim()
    means = [line.values.mean(axis=0) for line in lines]
    if len(lines) == 1 and len(means[0]) <= MOST_CELLS and not lines[0].whole:
        for step, value in zip(lines[0].steps, means[0], strict=True):
            axes.annotate(f"{value:.1f}", (step, value), (0, 6), textcoords="offset points", ha="center", fontsize=9)
    elif len(lines) <= MOST_LABELS:
        places = apart([float(mean[-1]) for mean in means], 0.075 * (high - low))
        for line, mean, place in zip(lines, means, places, strict=True):
            colour = COLOURS[line.index % len(COLOURS)]
            axes.annotate(
                f"{mean[-1]:.1f}",
                (1.0, place),
                (4, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                color=colour,
            )


def finals(
    name: str, title: str, alt: str, lines: Sequence[Curve], texts: Sequence[str], zoom: bool = False
) -> Drawing:
    """Draw the last value of each line as a bar, with a dot for each seed; `texts` are the values in words."""
    last = [line.values[:, -1] for line in lines]
    rows = [
        Bar(line.label, float(values.mean()), text, line.index, tuple(values.tolist()) if len(values) > 1 else ())
        for line, values, text in zip(lines, last, texts, strict=True)
    ]
    everything = np.concatenate(last)
    low, high = fitted(everything) if zoom else limits(everything)
    return bars(name, title, alt, rows, (low, high), "%" if low <= 0 else f"% (the axis begins at {low:.0f})")


def against_seconds(name: str, title: str, alt: str, points: Sequence[Bar], seconds: Sequence[float]) -> Drawing:
    """Draw each accuracy (in percent, with its name) against the seconds that a run took, on a logarithmic axis."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = np.array([point.value for point in points])
        low, high = fitted(values)
        axes.set(xscale="log", ylim=(low - 1, high + 1), xlabel="seconds a run", ylabel="% (the axis is cut)")
        axes.set_xlim(0.8 * min(seconds), 4 * max(seconds))  # names stand to the right
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for point, second in zip(points, seconds, strict=True):
            axes.plot(second, point.value, MARKERS[point.colour % len(MARKERS)], ms=5, color=_colour(point))
        names = [short(point.label, 30) for point in points]
        places = _free([math.log(s) for s in seconds], values, names, math.log(5 * max(seconds) / min(seconds)))
        for point, name, second, place in zip(points, names, seconds, places, strict=True):
            colour = _colour(point)
            axes.text(1.06 * second, place, name, fontsize=7, va="center", color=colour)
            if place != point.value:  # a thin line from the point to its name
                axes.plot([second, 1.05 * second], [point.value, place], color=colour, lw=0.5)
        axes.grid(color="#808080", alpha=0.3, lw=0.6)

    return drawing(name, title, alt, max(3.0, 1.2 + 0.16 * len(points)), draw)


def _free(lefts: Sequence[float], values: Array, names: Sequence[str], width: float) -> list[float]:
    """Heights for names that begin at `lefts`, near their values, so that none lies on another or on a point."""
    step = 0.02 * (float(values.max() - values.min()) + 2)
    taken = [
        (left - 0.02 * width, left + 0.02 * width, float(value)) for left, value in zip(lefts, values, strict=True)
    ]
    places = []
    for i, (left, name) in enumerate(zip(lefts, names, strict=True)):
        right = left + (0.03 + 0.0155 * len(name)) * width
        others = [box for number, box in enumerate(taken) if number != i and box[0] < right and left < box[1]]
        tries = (float(values[i]) + sign * n * step / 2 for n in range(200) for sign in (1, -1))
        place = next(y for y in tries if all(abs(y - box[2]) >= 1.5 * step for box in others))
        places.append(place)
        taken.append((left, right, place))
    return places


def _colour(point: Bar) -> str:
    return COLOURS[point.colour % len(COLOURS)]


def limits(values: Array) -> tuple[float, float]:
    """Limits of an axis in percent that exaggerates nothing: 0 to 100, and lower where a value is negative."""
    low = float(np.nanmin(values))
    return (10 * float(np.floor(low / 10)) if low < 0 else 0.0), 100.0


def fitted(values: Array) -> tuple[float, float]:
    """Whole percents around `values`, two points at least: rounding errors must not look like differences."""
    low, high = float(np.floor(np.nanmin(values))), float(np.ceil(np.nanmax(values)))
    return (low, high) if high - low >= 2 else (low - 1, high + 1)


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


def mixture(name: str, title: str, alt: str, shares: Array) -> Drawing:
    """Draw which share of its images each class has in each task of a stream without boundaries, [T, K]."""
    tasks, classes = ([str(i + 1) for i in range(n)] for n in shares.shape)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = heat(axes, 100 * shares, (0.0, 100.0), tasks, classes)
        axes.set(xlabel="class, by the task of most of its images; blurry ones last", ylabel="task")
        figure.colorbar(image, label="% of the class")

    return drawing(name, title, alt, heat_height(len(shares), 4.2), draw)
