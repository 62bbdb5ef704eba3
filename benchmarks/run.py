"""Run the rows of a table and keep their results.json: `python benchmarks/run.py cifar100-lite --seeds 42,1`.

The rows and their commands are in benchmarks/results/TABLE/rows.yaml; `$LITE` and other variables in a command
come from the environment (docs/results.md says what they hold). A result that is already there is not made again.
Where rows.yaml holds `compare`, its rows are methods of one `promptcl compare`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from promptcl.cli.compare import folder_of

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run what is asked for; the exit code is the number of failed runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("--rows", help="names, comma-separated (default: all)")
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--out", type=Path, default=ROOT / "runs", help="folder of the runs themselves")
    parser.add_argument("--upcast", action="store_true", help="by benchmarks/upcast.py: no bfloat16 instructions here")
    parser.add_argument("--collect", action="store_true", help="of a comparison: run nothing, keep what is finished")
    arguments = parser.parse_args()
    folder = ROOT / "benchmarks" / "results" / arguments.table
    rows = yaml.safe_load((folder / "rows.yaml").read_text(encoding="utf-8"))
    program = [str(ROOT / "benchmarks" / "upcast.py")] if arguments.upcast else ["-m", "promptcl"]
    common = rows["compare"] if isinstance(rows, dict) else None
    rows = rows if common is None else rows["rows"]
    wanted = arguments.rows.split(",") if arguments.rows else [row["row"] for row in rows]
    rows, seeds = [row for row in rows if row["row"] in wanted], arguments.seeds.split(",")
    if common is not None:
        out = arguments.out / arguments.table
        return compared(common, rows, seeds, folder, out, program, arguments.collect)
    failed = 0
    for row in rows:
        for seed in seeds:
            kept = folder / row["row"] / f"{seed}.json"
            if kept.exists():
                continue
            out = arguments.out / arguments.table / f"{row['row']}-seed{seed}"
            words = shlex.split(os.path.expandvars(row["command"]))
            command = [sys.executable, *program, *words[1:], f"seed={seed}", "--out", str(out), "--quiet"]
            if subprocess.run(command, cwd=ROOT).returncode != 0:
                failed += 1
                continue
            keep(out / "results.json", kept, arguments.upcast)
    return failed


def compared(
    common: str,
    rows: list[dict[str, str]],
    seeds: list[str],
    folder: Path,
    out: Path,
    program: list[str],
    collect: bool,
) -> int:
    """Compare the methods of which a result is missing, and keep what is finished; returns how many are not."""
    missing = {(row["row"], seed): folder / row["row"] / f"{seed}.json" for row in rows for seed in seeds}
    missing = {key: kept for key, kept in missing.items() if not kept.exists()}
    methods = {row["row"]: row["method"] for row in rows if any(row["row"] == name for name, _ in missing)}
    if methods and not collect:
        words = [*shlex.split(os.path.expandvars(common)), *methods.values(), "--seeds", ",".join(seeds)]
        command = [sys.executable, *program, "compare", *words, "--out", str(out), "--quiet"]
        subprocess.run(command, cwd=ROOT, check=False)
    for (row, seed), kept in missing.items():
        made = out / folder_of(methods[row]) / f"seed{seed}" / "results.json"
        if made.exists():
            keep(made, kept, program[0] != "-m")
    return sum(not kept.exists() for kept in missing.values())


def keep(results: Path, kept: Path, upcast: bool) -> None:
    """Copy results.json without the folders of this machine: of data.root and backbone.weights the last name stays."""
    content = json.loads(results.read_text(encoding="utf-8")) | ({"upcast": True} if upcast else {})
    for section, key in (("data", "root"), ("backbone", "weights")):
        value = content["config"][section][key]
        content["config"][section][key] = value and Path(value).name
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
