"""Write one HTML page about groups of runs, which needs no network, and a PNG of every figure. Imports no torch.

T tasks, M prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

from promptcl.experiments.metrics import mean_std, speed
from promptcl.reports import figures, page
from promptcl.reports.drawing import MOST_NAMES, Bar
from promptcl.reports.figures import Curve
from promptcl.reports.page import Numbers, Shown
from promptcl.reports.results import Counts, Group, Results, as_array, read
from promptcl.reports.schedules import Array, Mixture

METRICS = {
    "average_accuracy": "average accuracy after the last task (A_T)",
    "average_incremental_accuracy": "average incremental accuracy (A-bar)",
    "forgetting": "forgetting",
    "learning_accuracy": "learning accuracy",
}
ONLINE = {"online_accuracy": "online accuracy", "anytime_accuracy": "anytime accuracy"}
"""Metrics of streams that have no tasks, shown where a run has them."""


def write(paths: Sequence[Path], out: Path, zoom: bool = False) -> int:
    """Write the page `out`, and PNGs into the folder `out`-figures; returns the number of figures.

    Axes in percent go from 0 to 100; with `zoom` only as far as the values.
    Raises:
        UserError: not a run, unreadable results, `out` is not an .html path.
        OSError: `out` cannot be written.
    """
    page.check(out)
    groups = read(paths)
    matrices = [found for group in groups for found in _matrix(group, groups, zoom)]
    compared = _comparison(groups, zoom)
    online = {key: title for key, title in ONLINE.items() if any(getattr(g.runs[0], key) is not None for g in groups)}
    sections = [(group, _section(group), _pool(group)) for group in groups]
    text = page.render(
        "report.html.j2",
        title=", ".join(group.name for group in groups)[:80],
        groups=groups,
        metrics={**METRICS, **online},
        spread=spread,
        speeds=speeds,
        label=label,
        first=matrices if len(groups) > 1 else [*matrices, *compared],
        compared=compared if len(groups) > 1 else [],
        sections=sections,
        differences=_differences(groups),
        origins=_origins,
        yaml=lambda config: yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )
    return page.save(out, text, [*matrices, *compared, *(one for _, some, pool in sections for one in [*some, *pool])])


def spread(values: Sequence[float | None]) -> str:
    """The text `mean ± standard deviation`; the value alone for one seed; `-` where a value is missing."""
    found = mean_std(values)
    if found is None:
        return "-"
    return f"{found[0]:.2f} ± {found[1]:.2f}" if len(values) > 1 else f"{found[0]:.2f}"


def label(group: Group, groups: Sequence[Group]) -> str:
    """What a figure calls a group: its letter and name, or the name alone where there is one group."""
    return f"{group.letter} {group.name}" if len(groups) > 1 else group.name


def _comparison(groups: Sequence[Group], zoom: bool) -> list[Shown]:
    """Curves over tasks of every group, and the last values where there are several groups."""
    found = []
    titles = {"average_accuracy": "Average accuracy", "forgetting": "Forgetting"}
    titles |= {"seen_accuracy": "Accuracy on the classes seen", "online_accuracy": "Online accuracy"}
    for key, title in titles.items():
        curves = [
            Curve(i, label(g, groups), [task.task + 1 for task in g.runs[0].tasks], g.curve(key), g.whole)
            for i, g in enumerate(groups)
        ]
        curves = [curve for curve in curves if not np.isnan(curve.values[:, -1]).any()]
        if not curves:
            continue
        name = key.replace("_", "-")
        rows = [[curve.label, *_means(curve.values)] for curve in curves]
        finals = [row[-1] for row in rows]
        last = "; ".join(f"{row[0]}: {row[-1]} %" for row in rows)
        longest = max(curves, key=lambda curve: len(curve.steps))
        if len(longest.steps) > 1:  # one point is no curve
            head = ["tasks learned", *map(str, longest.steps)]
            numbers = Numbers(head, [row + [""] * (len(head) - len(row)) for row in rows])
            alt = f"{title} after each task. After the last one: {last}."
            drawn = figures.curves(name, f"{title} over tasks", alt, curves, _steps(groups), zoom)
            found.append(Shown(drawn, "", numbers))
        if len(curves) > 1:
            title = f"{title} after the last task"
            alt = f"{title}, mean and standard deviation over seeds. {last}."
            numbers = Numbers(["", title + " (%)"], [[row[0], row[-1]] for row in rows])
            found.append(Shown(figures.finals(f"{name}-last", title, alt, curves, finals, zoom), "", numbers))
    return [*found, *_against_seconds(groups)] if len(groups) > 2 else found


def _against_seconds(groups: Sequence[Group]) -> list[Shown]:
    """Accuracy after the last task against the seconds of a run, means over seeds."""
    points, seconds = [], []
    for i, group in enumerate(groups):
        text = spread([run.average_accuracy for run in group.runs])
        mean = sum(run.average_accuracy for run in group.runs) / len(group.runs)
        points.append(Bar(label(group, groups), mean, text, i))
        seconds.append(max(1.0, sum(run.seconds for run in group.runs) / len(group.runs)))
    title = "Accuracy after the last task against seconds"
    rows = [[point.label, point.text, f"{s:.0f}"] for point, s in zip(points, seconds, strict=True)]
    alt = f"{title}. " + "; ".join(f"{row[0]}: {row[1]} % in {row[2]} s" for row in rows) + "."
    drawn = figures.against_seconds("accuracy-against-seconds", title, alt, points, seconds)
    return [Shown(drawn, "", Numbers(["", "accuracy (%)", "seconds"], rows))]


def speeds(group: Group) -> str:
    """Images a second in training and in testing, the mean over the runs; `-` where they are not known."""
    rates = [speed([[vars(task) for task in run.tasks] for run in group.runs], kind) for kind in ("train", "eval")]
    return ", ".join("-" if rate is None else f"{rate:,.0f}" for rate in rates)


def _steps(groups: Sequence[Group]) -> list[str]:
    """Names of the tasks at steps 1, 2, ..., if they have names, few and the same in every group; else none."""
    found = {tuple(group.task_names()) for group in groups if not group.whole}
    names = list(found.pop()) if len(found) == 1 else []
    numbered = all(name.isdigit() for name in names) or len(names) > MOST_NAMES
    measured = [task.task for group in groups if not group.whole for task in group.runs[0].tasks]
    return [] if numbered or max(measured) >= len(names) else names


def _means(values: Array) -> list[str]:
    """Mean ± standard deviation over seeds of each column of [seeds, T]."""
    return [spread([None if np.isnan(value) else value for value in column]) for column in values.T.tolist()]


def _section(group: Group) -> list[Shown]:
    """The schedule of the stream of a group, where it has one."""
    found, prefix, run = [], group.letter.lower(), group.runs[0]
    if isinstance(run.schedule, Mixture):
        found.append(_mixture(run.schedule, prefix, len(group.runs) > 1, run.seed))
    elif run.schedule is not None:
        drawn, expected = run.schedule.drawn(), np.array(run.schedule.expected_classes)
        count = (~np.isnan(drawn)).sum(axis=1)
        alt = (
            f"Classes (of {drawn.shape[1]}) drawn for each of {len(drawn)} micro-tasks: {count.mean():.1f} on average, "
        )
        alt += (
            f"{expected.mean():.1f} expected; {expected[len(expected) // 2]:.1f} expected in the middle of the stream."
        )
        rows = [[str(i + 1), f"{e:.2f}", str(n)] for i, (e, n) in enumerate(zip(expected, count, strict=True))]
        numbers = Numbers(["micro-task", "classes expected", "classes drawn"], rows)
        title = "Schedule of the classes" + (f" (seed {run.seed})" if len(group.runs) > 1 else "")
        found.append(Shown(figures.schedule(f"{prefix}-schedule", title, alt, drawn, expected), alt, numbers))
    return found


def _mixture(mixture: Mixture, prefix: str, several: bool, seed: int | None) -> Shown:
    """How the classes of a stream are spread over its tasks."""
    images = np.array(mixture.images, dtype=np.float64)
    classes, blurry = images.shape[1], len(mixture.blurry)
    away = images.sum() - images[mixture.task_of_class, np.arange(classes)].sum()
    remark = (
        f"{classes - blurry} classes are in one task each, {blurry} are blurry; {away:,.0f} of {images.sum():,.0f} "
        "images are in another task than that of their class."
    )
    title = "Classes of each task" + (f" (seed {seed})" if several else "")
    rows = [[str(t + 1), str(int(row.sum())), str(int((row > 0).sum()))] for t, row in enumerate(images)]
    numbers = Numbers(["task", "images", "classes"], rows)
    return Shown(figures.mixture(f"{prefix}-classes", title, f"{title}: {remark}", mixture.shares()), remark, numbers)


def _pool(group: Group) -> list[Shown]:
    """Figures of the selected prompts, one for each seed: prompts of two seeds have only their numbers in common."""
    found = []
    for run in group.runs:
        several = len(group.runs) > 1
        name = f"{group.letter.lower()}-prompts" + (f"-seed{run.seed}" if several else "")
        for phase, when in (("train", "in training"), ("test", "in the last tests")):
            rows: list[Counts | None] = getattr(run.prompt_selections, phase, [])
            if any(row and len(row) > 1 and sum(row) for row in rows):  # of one prompt there is nothing to tell
                title = f"Prompts selected {when}" + (f" (seed {run.seed})" if several else "")
                matches = getattr(run.pool, phase, [])
                cosines = [match.cosine for match in matches if match is not None and match.cosine is not None]
                found.append(
                    _selections(f"{name}-{phase}", title, rows, cosines, _labels(group, run, len(rows), phase))
                )
    return found


def _matrix(group: Group, groups: Sequence[Group], zoom: bool) -> list[Shown]:
    """Figure of the accuracy matrix of a group, mean over its seeds; none where there is a single test set."""
    matrix = group.matrix()
    if matrix.shape[1] == 1:
        return []
    measured = [bool(np.isfinite(row).any()) for row in matrix]
    after, columns = group.task_names(), group.test_names()
    rows = after if len(after) == len(matrix) else [str(t + 1) for t in range(len(matrix))]
    rows = ["all"] if group.whole else [row for row, has in zip(rows, measured, strict=True) if has]
    matrix = matrix[measured]
    seeds = f", mean of {len(group.runs)} seeds" if len(group.runs) > 1 else ""
    title = f"Accuracy matrix{f' of {label(group, groups)}' if len(groups) > 1 else ''} (%){seeds}"
    last = matrix[-1]
    alt = f"{title}: accuracy on each of {len(last)} test sets after each of {len(matrix)} tasks; "
    alt += f"after the last, {np.nanmin(last):.1f} to {np.nanmax(last):.1f} %."
    cells = [["" if np.isnan(value) else f"{value:.1f}" for value in row] for row in matrix]
    numbers = Numbers(["after task", *columns], [[row, *some] for row, some in zip(rows, cells, strict=True)])
    drawn = figures.accuracy_matrix(f"{group.letter.lower()}-accuracy", title, alt, matrix, rows, columns, zoom)
    return [Shown(drawn, "", numbers)]


def _labels(group: Group, run: Results, count: int, phase: str) -> list[str]:
    """The name of each row: the task it was measured after (train), or whose test set it is (test)."""
    names = group.task_names() if phase == "train" and len(run.tasks) == count else group.test_names()
    return names if len(names) == count else [str(i + 1) for i in range(count)]


def _selections(
    name: str, title: str, counts: Sequence[Counts | None], cosines: Sequence[float], tasks: Sequence[str]
) -> Shown:
    """Figure of the share of each prompt in each task's selections, and of how evenly they are spread."""
    width = max(len(row) for row in counts if row)
    # Of a pool that grows: prompts of later tasks were chosen by no image before.
    array = as_array([[*row, *[0] * (width - len(row))] if row and sum(row) else [None] * width for row in counts])
    shares = array / array.sum(axis=1, keepdims=True)
    bits = entropy(shares)
    used = int((np.nan_to_num(array).sum(axis=0) > 0).sum())
    remark = (
        f"{used} of {width} prompts are ever selected. Entropy (bits): log2(n) where n prompts share all selections "
    )
    remark += f"evenly, at most {np.log2(width):.1f}; here {np.nanmin(bits):.2f} to {np.nanmax(bits):.2f}."
    if cosines:
        remark += (
            f" Mean cosine of queries to selected keys: {cosines[0]:.2f} for the first, {cosines[-1]:.2f} for the last."
        )
    alt = f"{title}: share of each of {width} prompts in the selections of each of {len(counts)} tasks. {remark}"
    rows = [
        [task, *("" if np.isnan(value) else f"{value:.1f}" for value in 100 * row), f"{even:.2f}"]
        for task, row, even in zip(tasks, shares, bits, strict=True)
    ]
    numbers = Numbers(["task, % of prompt", *map(str, range(1, width + 1)), "entropy (bits)"], rows)
    return Shown(figures.prompt_selections(name, title, alt, 100 * shares, bits, tasks), remark, numbers)


def entropy(shares_TM: Array) -> Array:
    """Entropy of each row in bits: 0 = always one prompt, log2(M) = all M equally often. NaN stays NaN."""
    logs_TM = np.log2(np.where(shares_TM > 0, shares_TM, 1.0))
    bits_T: Array = np.abs((shares_TM * logs_TM).sum(axis=1))
    return bits_T


def _differences(groups: Sequence[Group]) -> list[list[str]]:
    """Rows of the settings that differ: key, and the value of each group (empty where it has no such setting)."""
    settings = [group.runs[0].settings for group in groups]
    rows = []
    for key in dict.fromkeys(key for one in settings for key in one):
        values = [one.get(key) for one in settings]
        # Another method has other options; the row of method.name says so already.
        compared = [value for value in values if value is not None or not key.startswith("method.")]
        if len(set(compared)) > 1:
            rows.append([key, *(value or "" for value in values)])
    return rows


def _origins(group: Group) -> list[tuple[str, str, bool]]:
    """What made the results: name, value (several where seeds differ), and whether seeds differ."""
    facts: dict[str, Callable[[Results], object]] = {
        "backbone": lambda run: run.backbone.get("name"),
        "weights": lambda run: run.backbone.get("weights"),
        "fingerprint (SHA-256)": lambda run: run.backbone.get("sha256"),
        "device": lambda run: run.device,
        "versions": lambda run: ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "commit": lambda run: run.git_commit,
        "classes of each task": lambda run: ", ".join(str(len(task.class_names)) for task in run.tasks[:50]),
        "trained parameters": lambda run: f"{run.trained_parameters:,}",
    }
    rows = []
    for name, fact in facts.items():
        values = list(dict.fromkeys(str(fact(run) or "unknown") for run in group.runs))
        rows.append((name, " | ".join(values), len(values) > 1))
    return rows
