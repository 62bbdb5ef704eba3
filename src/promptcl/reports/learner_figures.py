"""Draw the figures of a page about a learner, with their numbers. Imports no torch.

T tasks, K classes that the learner knows, C >= K classes of the images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from promptcl.reports.answers import Answers, Ints, expected_error
from promptcl.reports.drawing import (
    COLOURS,
    INK,
    MOST_CELLS,
    MOST_NAMES,
    Bar,
    bars,
    drawing,
    heat,
    heat_height,
    short,
    tilt,
)
from promptcl.reports.page import Numbers, Shown

PERCENT = (0.0, 100.0)
STRANGERS = "never learned"
MOST_PAIRS = 15
MOST_BLOCKS = 20


class Task(Protocol):
    """What a learner records of a task, as `store.TaskRecord`."""

    name: str
    when: str
    images: dict[str, int]
    seconds: float


def history(tasks: Sequence[Task]) -> Shown:
    """Classes known after each task, and the images of each."""
    seen: set[str] = set()
    known, new = [], []
    for task in tasks:
        new.append(len(set(task.images) - seen))
        seen |= set(task.images)
        known.append(len(seen))
    images = [sum(task.images.values()) for task in tasks]
    days = [task.when[:10] for task in tasks]
    named = len(tasks) <= MOST_CELLS
    labels = [
        short(task.name, 16) + (f"\n{short(day, 10)}" if len(set(days)) > 1 else "")
        for task, day in zip(tasks, days, strict=True)
    ]
    steps = list(range(1, len(tasks) + 1))

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.bar(steps, known, width=0.7, color=COLOURS[0])
        upper.set(ylabel="classes known", ylim=(0, 1.18 * max(known)))
        lower.bar(steps, images, width=0.7, color=COLOURS[1])
        upper.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        lower.set(ylabel="images", ylim=(0, 1.18 * max(*images, 1)), xlim=(0.4, len(tasks) + 0.6))
        if named:
            _above(upper, steps, known)
            _above(lower, steps, images)
            lower.set_xticks(steps, labels, rotation=tilt(labels))
        else:
            lower.set_xlabel("task")

    alt = f"Classes known after each task, and images of each. In the end: {known[-1]} classes, {sum(images)} images."
    rows = [
        [short(task.name), short(task.when), str(count), str(total), str(size), f"{task.seconds:.0f}"]
        for task, count, total, size in zip(tasks, new, known, images, strict=True)
    ]
    numbers = Numbers(["task", "learned at (UTC)", "new classes", "classes known", "images", "seconds"], rows)
    height = 2.6 + (0.07 * min(16, max(map(len, labels))) if named and tilt(labels) else 0)
    return Shown(drawing("history", "Classes and images, task by task", alt, height, draw), "", numbers)


def _above(axes: Axes, steps: Sequence[int], values: Sequence[int]) -> None:
    for step, value in zip(steps, values, strict=True):
        axes.annotate(f"{value:,}", (step, value), (0, 2), textcoords="offset points", ha="center", fontsize=9)


def images_per_class(classes: Sequence[str], tasks: Sequence[Task]) -> Shown:
    """How many images each class was learned from."""
    counts: Counter[str] = Counter()
    for task in tasks:
        counts.update(task.images)
    order = list(classes)
    if len(order) > MOST_NAMES:
        ranked = sorted(order, key=lambda name: counts[name])
        order = [*ranked[:12], *ranked[-12:]]
    rows = [Bar(name, counts[name], f"{counts[name]:,}", 1) for name in order]
    if others := sorted(set(classes) - set(order)):
        mean = sum(counts[name] for name in others) / len(others)
        rows.insert(12, Bar(f"{len(others)} others", mean, f"{mean:.0f} each", 7))
    values = [counts[name] for name in classes]
    text = f"{min(values):,} to {max(values):,} images a class, {sum(values) / len(values):.0f} on average."
    if min(values) == max(values):
        text = f"{values[0]:,} images a class."
    if others:
        text += " The classes with the fewest and the most images; the rest as a mean."
    alt = f"Images that each of {len(classes)} classes was learned from: {text}"
    drawn = bars("images", "Images learned from", alt, rows, (0.0, 1.02 * max(*values, 1)), "images")
    return Shown(drawn, text, Numbers(["class", "images"], [[short(name), f"{counts[name]:,}"] for name in classes]))


def accuracies(answers: Answers) -> Shown:
    """Right answers of each learned class, the worst first."""
    known = set(answers.names[: answers.probabilities.shape[1]])
    found = sorted((row for row in answers.by_class() if row[0] in known), key=lambda row: row[1] / row[3])
    many = len(found) > MOST_NAMES
    rows = [_share(name, right, n) for name, right, _, n in (found[: MOST_NAMES - 1] if many else found)]
    rest = found[MOST_NAMES - 1 :]
    if many:
        rows.append(_share(f"{len(rest)} others", sum(row[1] for row in rest), sum(row[3] for row in rest), 7))
    worst = found[0]
    text = f"The least: {short(worst[0])}, {worst[1]} of {worst[3]}. The most probable class counts, unknown or not."
    if without := len(known) - len(found):
        text += f" {without} learned classes have no images here."
    alt = f"Share of right answers of {len(found)} classes. {text}"
    numbers = Numbers(
        ["class", "right", "called unknown", "images"],
        [[short(name), *map(str, counts)] for name, *counts in found],
    )
    return Shown(bars("classes", "Accuracy of each class (%)", alt, rows, PERCENT, "%"), text, numbers)


def _share(label: str, part: int, whole: int, colour: int = 0) -> Bar:
    value = 100 * part / whole
    return Bar(label, value, f"{value:.0f} ({part:,} of {whole:,})", colour)


def confusion(answers: Answers, tasks: Sequence[Task]) -> list[Shown]:
    """Which classes are taken for which: all of them, or the most frequent pairs and the classes in blocks."""
    learned = answers.probabilities.shape[1]
    counts = answers.confusion()
    rows = np.flatnonzero(counts.sum(axis=1))
    if len(rows) <= MOST_NAMES and learned <= MOST_NAMES:
        numbered = learned > MOST_CELLS
        names = [f"{i + 1} {name}" if numbered else name for i, name in enumerate(answers.names)]
        columns = [str(i + 1) for i in range(learned)] if numbered else names[:learned]
        strangers = int((rows >= learned).sum())
        return [_matrix("Which class is taken for which", counts[rows], [names[i] for i in rows], columns, strangers)]
    blocks, place = _blocks(answers.names[:learned], tasks)
    place = np.append(place, np.full(len(answers.names) - learned, len(blocks), dtype=np.int64))
    grouped = np.zeros((len(blocks) + 1, len(blocks)), dtype=np.int64)
    for i, j in np.argwhere(counts).tolist():
        grouped[place[i], place[j]] += counts[i, j]
    has = grouped.sum(axis=1) > 0
    names = [name for name, some in zip([*blocks, STRANGERS], has, strict=True) if some]
    together = _matrix("Which classes are taken for which, in groups", grouped[has], names, blocks, int(has[-1]))
    return [*_pairs(answers), together]


def _matrix(title: str, counts: Ints, rows: list[str], columns: list[str], strangers: int) -> Shown:
    """Figure of a confusion matrix in percent of its rows, of which the last `strangers` are of no learned class."""
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        heat(axes, np.where(counts, shares, np.nan), PERCENT, rows, columns)
        axes.set(xlabel="most probable class", ylabel="class of the image")
        if strangers:
            axes.axhline(len(rows) - strangers - 0.5, color=COLOURS[3], lw=1.5)

    text = "Percent of the images of a row; empty: none."
    if strangers:
        text += f" Below the line: {STRANGERS}."
    alt = f"{title}: {len(rows)} rows, {len(columns)} columns, {counts.sum()} images. {text}"
    height = heat_height(len(rows), 6.5, columns)
    numbers = Numbers(
        ["images, by answer", *map(short, columns)],
        [[short(n), *map(str, c)] for n, c in zip(rows, counts, strict=True)],
    )
    return Shown(drawing("confusion", title, alt, height, draw), text, numbers)


def _pairs(answers: Answers) -> list[Shown]:
    pairs = answers.pairs()
    if not pairs:
        return []
    rows = [
        _share(f"{short(pair.true, 20)} → {short(pair.answer, 20)}", pair.images, pair.of, 3)
        for pair in pairs[:MOST_PAIRS]
    ]
    wrong, told = sum(pair.images for pair in pairs), sum(pair.images for pair in pairs[:MOST_PAIRS])
    text = f"{told} of {wrong} wrong answers are of these {len(rows)} kinds; there are {len(pairs)} kinds."
    alt = f"The most frequent mistakes, class of the image → answer, in percent of the class. {text}"
    numbers = Numbers(
        ["class → answer", "images", "of"],
        [[f"{short(pair.true)} → {short(pair.answer)}", str(pair.images), str(pair.of)] for pair in pairs[:100]],
    )
    return [Shown(bars("mistakes", "The most frequent mistakes", alt, rows, PERCENT, "% of the class"), text, numbers)]


def _blocks(classes: Sequence[str], tasks: Sequence[Task]) -> tuple[list[str], Ints]:
    """Groups of classes: by the task in which they were learned first, or as many one after the other; and each's."""
    first = {name: t for t, task in reversed(list(enumerate(tasks))) for name in task.images}
    used = sorted({first.get(name, 0) for name in classes})
    if 2 <= len(used) <= MOST_BLOCKS:
        return [tasks[t].name for t in used], np.array([used.index(first.get(name, 0)) for name in classes])
    size = -(-len(classes) // MOST_BLOCKS)
    starts = range(0, len(classes), size)
    names = [f"{start + 1}-{min(start + size, len(classes))}" for start in starts]
    return names, np.arange(len(classes)) // size


def reliability(answers: Answers) -> Shown:
    """Whether answers are right as often as their probability says."""
    bins = answers.reliability()
    edges = np.linspace(5, 95, 10)
    counts = {min(int(one.probability / 10), 9): one.images for one in bins}

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot(PERCENT, PERCENT, ls=":", color=COLOURS[7], label="as sure as right")
        x, y = [one.probability for one in bins], [one.right for one in bins]
        upper.plot(x, y, marker="o", color=COLOURS[0], label="this learner", clip_on=False)
        upper.set(ylabel="right (%)", ylim=PERCENT, xlim=PERCENT)
        upper.grid(color="#808080", alpha=0.3, lw=0.6)
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        heights = [counts.get(step, 0) for step in range(10)]
        lower.bar(edges, heights, width=9, color=COLOURS[7])
        for at, height in zip(edges, heights, strict=True):
            if height:
                lower.annotate(str(height), (at, height), (0, 1), textcoords="offset points", ha="center", fontsize=8)
        lower.set(xlabel="probability of the answer (%)", ylabel="images", ylim=(0, 1.3 * max(heights)))

    error = f"{expected_error(bins):.1f} points"
    text = f"Above the dotted line answers are right more often than their probability says. Mean distance: {error}."
    alt = f"Share of right answers by probability, in {len(bins)} steps. {text}"
    rows = [[f"{one.probability:.1f}", f"{one.right:.1f}", str(one.images)] for one in bins]
    numbers = Numbers(["mean probability %", "right %", "images"], rows)
    return Shown(drawing("reliability", "Is it as sure as it is right?", alt, 3.8, draw), text, numbers)


def unknown(answers: Answers, threshold: float) -> Shown:
    """How familiar the images are that were answered right, answered wrong, and never learned; a line at `threshold`,
    below which they are called unknown.
    """
    kinds, shares = answers.kinds(), answers.shares_unknown()
    colours = {"right answers": 2, "wrong answers": 3, STRANGERS: 4}
    edges = np.histogram_bin_edges(np.append(answers.familiarity, threshold), 40)

    def draw(figure: Figure) -> None:
        stack = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, part, whole) in zip(stack, shares, strict=True):
            axes.hist(answers.familiarity[kinds[name]], edges, color=COLOURS[colours[name]])
            axes.axvline(threshold, color=INK, ls="--", lw=1)
            axes.set_title(
                f"{name}: {100 * part / whole:.0f} % unknown ({part:,} of {whole:,})", fontsize=10, loc="left"
            )
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))
        stack[-1].set_xlabel("familiarity")
        figure.supylabel("images", fontsize=10)

    text = f"Left of the line, less familiar than {threshold:.2f}, the answer is unknown; "
    text += "few of the right ones should be, and most of the others."
    alt = "Familiarity of the images. Called unknown: " + "; ".join(f"{n}: {p} of {w}" for n, p, w in shares) + "."
    learned = set(answers.names[: answers.probabilities.shape[1]])
    table = [
        [short(name) + ("" if name in learned else f" ({STRANGERS})"), str(count), str(n)]
        for name, _, count, n in answers.by_class()
    ]
    numbers = Numbers(["class", "called unknown", "images"], table)
    return Shown(drawing("unknown", "Called unknown", alt, 0.7 + 0.9 * len(kinds), draw), text, numbers)
