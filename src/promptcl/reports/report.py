"""Write one HTML page about groups of runs, which needs no network, and a PNG of every figure. Imports no torch.

T tasks, M prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
import yaml

from promptcl.errors import UserError
from promptcl.experiments.metrics import mean_std
from promptcl.reports import figures
from promptcl.reports.figures import Curve, Drawing
from promptcl.reports.results import Array, Counts, Group, Results, as_array, read

METRICS = {"average_accuracy": "average accuracy", "forgetting": "forgetting", "learning_accuracy": "learning accuracy"}


@dataclass(frozen=True)
class Numbers:
    """The numbers behind a figure, as the rows of a table."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Shown:
    """A figure, a remark below it, and its numbers."""

    drawing: Drawing
    remark: str
    numbers: Numbers


def write(paths: Sequence[Path], out: Path) -> int:
    """Write the page `out`, and PNGs into the folder `out`-figures; returns the number of figures.

    Raises:
        UserError: not a run, unreadable results, `out` is not an .html path.
        OSError: `out` cannot be written.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: expected the name of a page; write e.g. --out report.html")
    groups = read(paths)
    compared = _comparison(groups)
    sections = [(group, _section(group), _pool(group)) for group in groups]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("promptcl.reports").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        groups=groups,
        metrics=METRICS,
        spread=spread,
        label=label,
        compared=compared,
        sections=sections,
        differences=_differences(groups),
        origins=_origins,
        yaml=lambda config: yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )
    folder = out.with_name(f"{out.stem}-figures")
    folder.mkdir(parents=True, exist_ok=True)
    shown = [*compared, *(one for _, first, pool in sections for one in [*first, *pool])]
    for one in shown:
        (folder / f"{one.drawing.name}.png").write_bytes(one.drawing.png)
    out.write_text(page, encoding="utf-8")
    return len(shown)


def spread(values: Sequence[float | None]) -> str:
    """The text `mean ± standard deviation`; the value alone for one seed; `-` where a value is missing."""
    found = mean_std(values)
    if found is None:
        return "-"
    return f"{found[0]:.2f} ± {found[1]:.2f}" if len(values) > 1 else f"{found[0]:.2f}"


def label(group: Group, groups: Sequence[Group]) -> str:
    """What a figure calls a group: its letter and name, or the name alone where there is one group."""
    return f"{group.letter} {group.name}" if len(groups) > 1 else group.name


def _comparison(groups: Sequence[Group]) -> list[Shown]:
    """Curves over tasks of every group, and the last values where there are several groups."""
    found = []
    for key, title in (("average_accuracy", "Average accuracy"), ("forgetting", "Forgetting")):
        curves = [
            Curve(i, label(g, groups), [task.task + 1 for task in g.runs[0].tasks], g.curve(key), g.whole)
            for i, g in enumerate(groups)
        ]
        curves = [curve for curve in curves if not np.isnan(curve.values[:, -1]).any()]
        if not curves:
            continue
        name = key.replace("_", "-")
        rows = [[curve.label, *_means(curve.values)] for curve in curves]
        last = "; ".join(f"{row[0]}: {row[-1]} %" for row in rows)
        head = ["tasks learned", *map(str, max(curves, key=lambda curve: len(curve.steps)).steps)]
        numbers = Numbers(head, [row + [""] * (len(head) - len(row)) for row in rows])
        alt = f"{title} after each task. After the last one: {last}."
        found.append(Shown(figures.curves(name, f"{title} over tasks", alt, "%", curves), "", numbers))
        if len(curves) > 1:
            title = f"{title} after the last task"
            alt = f"{title}, mean and standard deviation over seeds. {last}."
            numbers = Numbers(["", title + " (%)"], [[row[0], row[-1]] for row in rows])
            found.append(Shown(figures.finals(f"{name}-last", title, alt, "%", curves), "", numbers))
    return found


def _means(values: Array) -> list[str]:
    """Mean ± standard deviation over seeds of each column of [seeds, T]."""
    return [spread([None if np.isnan(value) else value for value in column]) for column in values.T.tolist()]


def _section(group: Group) -> list[Shown]:
    """Accuracy matrix (mean over seeds) of a group, and the schedule of its stream."""
    found, prefix, run = [], group.letter.lower(), group.runs[0]
    if group.matrix().shape[1] > 1 or not (len(run.tasks) > 1 or group.whole):
        found.append(_matrix(group))
    if run.schedule is not None:
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
                found.append(_selections(f"{name}-{phase}", title, rows, cosines, _numbers(run, rows, phase)))
    return found


def _matrix(group: Group) -> Shown:
    """Figure of the accuracy matrix of a group, mean over its seeds."""
    matrix = group.matrix()
    seeds = f", mean of {len(group.runs)} seeds" if len(group.runs) > 1 else ""
    title = f"Accuracy matrix{seeds}"
    last = matrix[-1]
    alt = f"{title}: accuracy on each of {len(last)} test sets after each of {len(matrix)} tasks; "
    alt += f"after the last, {np.nanmin(last):.1f} to {np.nanmax(last):.1f} %."
    rows = [[str(t + 1), *("" if np.isnan(value) else f"{value:.1f}" for value in row)] for t, row in enumerate(matrix)]
    numbers = Numbers(["after task", *map(str, range(1, len(last) + 1))], rows)
    return Shown(figures.accuracy_matrix(f"{group.letter.lower()}-accuracy", title, alt, matrix), "", numbers)


def _numbers(run: Results, rows: Sequence[object], phase: str) -> list[int]:
    """The task number of each row: the task it was measured after (train), or whose test set it is (test)."""
    measured = [task.task + 1 for task in run.tasks]
    return measured if phase == "train" and len(measured) == len(rows) else list(range(1, len(rows) + 1))


def _selections(
    name: str, title: str, counts: Sequence[Counts | None], cosines: Sequence[float], tasks: Sequence[int]
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
        [str(task), *("" if np.isnan(value) else f"{value:.1f}" for value in 100 * row), f"{even:.2f}"]
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
        "trained parameters": lambda run: f"{run.trained_parameters:,}",
    }
    rows = []
    for name, fact in facts.items():
        values = list(dict.fromkeys(str(fact(run) or "unknown") for run in group.runs))
        rows.append((name, " | ".join(values), len(values) > 1))
    return rows
