"""Write the tables of README.md and docs/results.md from measured results: `python benchmarks/table.py`.

With `--check` the pages are only compared. In docs/results.md a table NAME stands between `<!-- table: NAME -->` and
`<!-- end -->`, with the command of each row below it; the README shows one table without the commands, between
`<!-- numbers: NAME -->` and `<!-- end -->`. The rows of a table, in order, are the entries of
benchmarks/results/NAME/rows.yaml (row, label, command and, if wanted, note); the numbers of a row come from
benchmarks/results/NAME/ROW/*.json, each the results.json of one seed. Where rows.yaml holds `compare`, with the words
common to all rows of `promptcl compare`, and `rows` with a `method` each, the rows are sorted by accuracy.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from promptcl.config.schema import Config
from promptcl.experiments.metrics import mean_std, speed
from promptcl.methods._base import load_method
from promptcl.recipes import available

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(
    r"(?P<begin><!-- (?P<kind>table|numbers): (?P<name>[\w.-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)
HEAD = (
    "| | accuracy % | forgetting | learning accuracy % | seeds | trained parameters | images/s (learning, testing) |\n"
    "|:--|--:|--:|--:|--:|--:|--:|\n"
)
COMPARED = (
    "| | last accuracy (A_T) % | incremental accuracy (A-bar) % | forgetting | orders | numbers trained | stored MB "
    "| seconds a run | images/s (learning, testing) | passes |\n|:--|--:|--:|--:|--:|--:|--:|--:|--:|:--|\n"
)
ONLINE = (
    "| | last accuracy % | anytime accuracy % | online accuracy % | seeds | trained parameters | images/s learned |\n"
    "|:--|--:|--:|--:|--:|--:|--:|\n"
)
Results = dict[str, Any]


class TableError(Exception):
    """Results or rows.yaml that do not make a table; one sentence."""


def main(arguments: list[str]) -> int:
    """Bring both pages up to date, or with `--check` say (exit code 1) which of them is not."""
    if arguments not in ([], ["--check"]):
        print("usage: python benchmarks/table.py [--check]", file=sys.stderr)
        return 2
    pages = {ROOT / "README.md": numbers, ROOT / "docs" / "results.md": fill}
    changed = False
    for page, filled in pages.items():
        old = page.read_text(encoding="utf-8")
        try:
            new = filled(old, RESULTS)
        except TableError as error:
            print(f"error: {page.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        if new == old:
            continue
        changed = True
        if arguments:
            name = page.relative_to(ROOT)
            print(f"{name} differs from benchmarks/results; run: python benchmarks/table.py", file=sys.stderr)
        else:
            page.write_text(new, encoding="utf-8")
    return int(changed and bool(arguments))


def fill(text: str, results: Path) -> str:
    """`text` with every marked table replaced by that of `results`/NAME; it has to show every table there is.

    Raises:
        TableError: a table without markers or markers without a table; see `table`.
    """
    marked = [match["name"] for match in BLOCK.finditer(text) if match["kind"] == "table"]
    folders = sorted(path.parent.name for path in results.glob("*/rows.yaml"))
    if sorted(marked) != folders:
        raise TableError(f"tables marked in the text: {sorted(marked)}; folders with rows.yaml in {results}: {folders}")
    return numbers(text, results)


def numbers(text: str, results: Path) -> str:
    """`text` with every marked table replaced, whichever of the tables it shows.

    Raises:
        TableError: markers without a table; see `table`.
    """
    for match in BLOCK.finditer(text):
        if not (results / match["name"] / "rows.yaml").is_file():
            raise TableError(f"a table {match['name']} is marked in the text, but {results} has no folder of that name")
    return BLOCK.sub(
        lambda match: f"{match['begin']}{table(results / match['name'], match['kind'] == 'table')}{match['end']}", text
    )


def table(folder: Path, commands: bool = True) -> str:
    """The table as Markdown; with `commands` its notes and the command of each row follow.

    Raises:
        TableError: rows and folders differ; a row's files differ in more than the seed, or repeat one.
    """
    rows, common = read_rows(folder)
    named, found = [row["row"] for row in rows], sorted(path.name for path in folder.iterdir() if path.is_dir())
    if sorted(named) != found and not (common is not None and set(found) < set(named)):
        raise TableError(f"{folder / 'rows.yaml'} names {sorted(named)}, but the folders are {found}")
    later, rows = [row for row in rows if row["row"] not in found], [row for row in rows if row["row"] in found]
    runs = {row["row"]: load_row(folder / row["row"]) for row in rows}
    head, of = HEAD, cells
    if any(run.get("online_accuracy") is not None for some in runs.values() for run in some):
        head, of = ONLINE, online_cells
    if common is not None:
        head, of = COMPARED, functools.partial(compared_cells, machine=machine_of(runs.values()))
        rows = sorted(rows, key=lambda row: -statistics.mean(run["average_accuracy"] for run in runs[row["row"]]))
    lines = [f"| {row['label']} | {' | '.join(of(runs[row['row']]))} |\n" for row in rows]
    if not commands:
        return "".join([head, *lines])
    notes = [f"- {row['label']}: {row[key]}\n" for row in rows for key in ("note", "says") if row.get(key)]
    notes += [f"- Not measured yet: {'; '.join(row['label'] for row in later)}\n"] if later else []
    made_by = [f"{row['command']}  # {row['label']}\n" for row in rows if "command" in row]
    if common is not None:
        made_by = [f"promptcl compare {common} {' '.join(shlex.quote(row['method']) for row in [*rows, *later])}\n"]
    return "".join([head, *lines, "\n", *notes, "\n" if notes else "", "```sh\n", *made_by, "```\n"])


def read_rows(folder: Path) -> tuple[list[dict[str, str]], str | None]:
    """The rows of a table, and the common words of a comparison, None where each row has a command."""
    content = yaml.safe_load((folder / "rows.yaml").read_text(encoding="utf-8"))
    return (content["rows"], content["compare"]) if isinstance(content, dict) else (content, None)


def load_row(folder: Path) -> list[Results]:
    """The results of a row's seeds, in the order of the seeds."""
    seeds: dict[int, Results] = {}
    settings: set[str] = set()
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        # Completed: a setting that is newer than the run had its default.
        config = Config.model_validate(results["config"]).model_dump(mode="json")
        if config["method"]["name"] in available("methods"):  # not one that is gone
            options = load_method(config["method"]["name"]).Options()
            config["method"] = {**options.model_dump(mode="json"), **config["method"]}
        seed = config.pop("seed")
        if seed in seeds:
            raise TableError(f"{path}: seed {seed} is there twice")
        seeds[seed] = results
        settings.add(json.dumps(config, sort_keys=True))
    if not seeds:
        raise TableError(f"{folder}: no results; copy the results.json of each seed there, e.g. as seed1.json")
    if len(settings) > 1:
        raise TableError(f"{folder}: the runs differ in more than the seed; give each setting a row of its own")
    return [seeds[seed] for seed in sorted(seeds)]


def cells(runs: list[Results]) -> list[str]:
    """The cells of a row after its label."""
    devices = sorted({run["device"] for run in runs})
    speeds = [rate(runs, kind) for kind in ("train", "eval")]
    return [
        *(spread([run[key] for run in runs]) for key in ("average_accuracy", "forgetting", "learning_accuracy")),
        str(len(runs)),
        f"{max(run['trained_parameters'] for run in runs):,}",
        f"{', '.join(speeds)} ({', '.join(devices)})",
    ]


def compared_cells(runs: list[Results], machine: str) -> list[str]:
    """The cells of a row of a comparison after its label; times are of the quickest run on that kind of machine."""
    keys = ("average_accuracy", "average_incremental_accuracy", "forgetting")
    timed = quickest(runs, machine)
    speeds = [rate([timed], kind) for kind in ("train", "eval")] if timed else []
    passes = load_method(runs[0]["config"]["method"]["name"]).about.rpartition("; ")[2]
    return [
        *(spread([run[key] for run in runs]) for key in keys),
        str(len(runs)),
        f"{max(run['trained_parameters'] for run in runs):,}",
        f"{max(run['stored_bytes'] for run in runs) / 1e6:,.2f}",
        f"{timed['seconds']:,.0f}" if timed else "-",
        ", ".join(speeds) or "-",
        passes.removesuffix("es").removesuffix(" pass"),
    ]


def machine_of(rows: Iterable[list[Results]]) -> str:
    """The kind of machine on which most rows of a table were run: seconds of different kinds cannot be compared."""
    kinds = Counter(kind for runs in rows for kind in {_kind(run) for run in runs})
    return kinds.most_common(1)[0][0] if kinds else ""


def quickest(runs: list[Results], machine: str) -> Results | None:
    """The run on that kind of machine that took least, as other work on it can only add; None where there is none."""
    return min((run for run in runs if _kind(run) == machine), key=lambda run: float(run["seconds"]), default=None)


def _kind(run: Results) -> str:
    """Device, processor, and what it has for bfloat16 without how fast that was."""
    made_by = run.get("versions", {})  # an older promptcl wrote none
    return f"{run['device']} {made_by.get('processor')} {re.split('[:,]', made_by.get('bfloat16', ''))[0]}"


def online_cells(runs: list[Results]) -> list[str]:
    """The cells of a row of a table of streams that are learned in one pass, after its label."""
    devices = ", ".join(sorted({run["device"] for run in runs}))
    keys = ("average_accuracy", "anytime_accuracy", "online_accuracy")
    return [
        *(spread([run[key] for run in runs]) for key in keys),
        str(len(runs)),
        f"{max(run['trained_parameters'] for run in runs):,}",
        f"{rate(runs, 'train')} ({devices})",
    ]


def spread(values: list[float | None]) -> str:
    """Mean ± sample standard deviation; the value alone for one seed; `-` where there is none."""
    found = mean_std(values)
    if found is None:
        return "-"
    return f"{found[0]:.2f} ± {found[1]:.2f}" if len(values) > 1 else f"{found[0]:.2f}"


def rate(runs: list[Results], kind: str) -> str:
    """Images a second, the mean over runs; `kind` is train or eval."""
    found = speed([run["tasks"] for run in runs], kind)
    return "-" if found is None else f"{found:,.0f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
