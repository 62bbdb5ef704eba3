"""Draw the table of methods, accuracy against seconds: `python benchmarks/scatter.py` writes docs/methods.png."""

from __future__ import annotations

import statistics
import sys

from table import RESULTS, ROOT, load_row, machine_of, quickest, read_rows

from promptcl.reports.drawing import Bar
from promptcl.reports.figures import against_seconds


def main(table: str = "methods") -> int:
    """Draw the rows of a comparison that were measured."""
    folder, seconds = RESULTS / table, []
    points: list[Bar] = []
    runs = {row["row"]: load_row(folder / row["row"]) for row in read_rows(folder)[0] if (folder / row["row"]).exists()}
    machine = machine_of(runs.values())
    for row, found in runs.items():
        if timed := quickest(found, machine):
            accuracy = statistics.mean(run["average_accuracy"] for run in found)
            points.append(Bar(row, accuracy, f"{accuracy:.1f}", len(points)))
            seconds.append(timed["seconds"])
    title = "Accuracy after the last task against the seconds of a run on one core"
    (ROOT / "docs" / f"{table}.png").write_bytes(against_seconds(table, title, title, points, seconds).png)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
