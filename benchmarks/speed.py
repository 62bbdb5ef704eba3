"""Run the rows of docs/speed.md and write its table: `python benchmarks/speed.py [ROW ...]`, `--check` to compare only.

The rows and their commands are in benchmarks/speed.yaml; $LITE and $VITB come from the environment (the
page says what they hold). Without rows, the table is written from the results that are there.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from marked import write

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results" / "speed"
PAGE = ROOT / "docs" / "speed.md"
HEAD = (
    "| | learning, images/s | testing | testing again | learning, times plain | testing, times plain "
    "| testing again, times plain | GFLOP/s, share of peak | memory |\n|:--|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)


def main(arguments: list[str]) -> int:
    """Measure what is asked for, then bring the page up to date (exit code 1 with `--check` where it is not)."""
    rows = yaml.safe_load((ROOT / "benchmarks" / "speed.yaml").read_text(encoding="utf-8"))
    measured = {}
    for row in rows:
        if row["row"] in arguments:
            words = [sys.executable, "-m", *shlex.split(os.path.expandvars(row["command"])), "--json"]
            print(row["row"], flush=True)
            measured[row["row"]] = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name, result in measured.items():  # only now: a result names the commit, and whether files differ from it
        (FOLDER / f"{name}.json").write_text(result, encoding="utf-8")
    return write(PAGE, {"speed": table(rows)}, "python benchmarks/speed.py", check="--check" in arguments)


def table(rows: list[dict[str, str]]) -> str:
    """The table of the results that are there."""
    lines = []
    for row in rows:
        file = FOLDER / f"{row['row']}.json"
        if file.is_file():
            lines.append(line(row["label"], json.loads(file.read_text(encoding="utf-8"))))
    return HEAD + "".join(lines)


def line(label: str, result: dict[str, Any]) -> str:
    """One row."""
    rates = [f"{result[name]['images_per_second']:.1f}" for name in ("train", "evaluate", "evaluate_again")]
    other = result.get("engine")
    ratios = [_ratio(other[name]) if other else "" for name in ("train", "evaluate", "evaluate_again")]
    share = f"{result['gflops']:.0f} of {result['peak_gflops']:.0f}, {100 * result['share_of_peak']:.0f} %"
    memory = f"{result['memory_bytes'] / 1e9:.2f} GB"
    return f"| {' | '.join([label, *rates, *ratios, share, memory])} |\n"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
