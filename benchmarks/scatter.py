"""Draw the table of methods, accuracy against seconds: `python benchmarks/scatter.py` writes docs/methods.png."""

from __future__ import annotations

import statistics
import sys

from table import RESULTS, ROOT, load_row, read_rows

from promptcl.reports.drawing import Bar
from promptcl.reports.figures import against_seconds


def main(table: str = "methods") -> int:
    """Draw the rows of a comparison that were measured."""
    folder, seconds = RESULTS / table, []
    points: list[Bar] = []
    for row in read_rows(folder)[0]:
        if (folder / row["row"]).exists():
            runs = load_row(folder / row["row"])
            accuracy = statistics.mean(run["average_accuracy"] for run in runs)
            points.append(
                Bar(
                    row["row"],
                    accuracy,
                    f"{accuracy:.1f}",
                    len(points),
                )
            )
            seconds.append(statistics.mean(run["seconds"] for run in runs))
    title = "Accuracy after the last task against the seconds of a run on one core"
    (ROOT / "docs" / f"{table}.png").write_bytes(against_seconds(table, title, title, points, seconds).png)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
