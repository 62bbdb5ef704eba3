"""Does the fiftieth task take longer than the first? Seconds, memory and size of a learner over many small tasks.

Command: python benchmarks/growth.py RECIPE [key=value ...]     (writes benchmarks/results/growth.json, docs/growth.png)
Every task is learned, saved to one store and tested on its own test images; what it took is written down.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

from promptcl.data.scenario import make_stream
from promptcl.data.splits import load_domains
from promptcl.experiments.speed import circumstances
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]


def resident() -> int:
    """Bytes of memory of this process that are in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure(recipe: str, settings: list[str]) -> dict[str, Any]:
    """Learn the stream; one entry a task."""
    config = load_config(recipe, settings)
    stream = make_stream(load_domains(config.data), config)
    learner = Learner(config)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        for number, task in enumerate(stream.tasks, 1):
            marks = [time.perf_counter()]
            learner.learn(task.train, name=task.name)
            marks.append(time.perf_counter())
            learner.save(store)
            marks.append(time.perf_counter())
            learner.evaluate(task.test)
            marks.append(time.perf_counter())
            names = ("learn_seconds", "save_seconds", "evaluate_seconds")
            row: dict[str, Any] = {n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}
            row |= {"task": number, "classes": len(learner.classes), "resident_bytes": resident()}
            row["store_bytes"] = sum(file.stat().st_size for file in store.iterdir())
            rows.append(row)
            print(json.dumps(row), flush=True)
    ends = {
        name: [statistics.median(row[name] for row in part) for part in (rows[1:11], rows[-10:])]
        for name in ("learn_seconds", "save_seconds", "evaluate_seconds", "resident_bytes", "store_bytes")
    }
    about = circumstances(learner.config, learner.device)
    return {"tasks": rows, "medians_of_tasks_2_to_11_and_of_the_last_10": ends, **about}


def draw(result: dict[str, Any], file: Path) -> None:
    """Seconds on the left, memory and store on the right."""
    rows = result["tasks"]
    numbers = [row["task"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
    for name, label in (("learn", "learn"), ("evaluate", "evaluate its test images"), ("save", "save the store")):
        left.plot(numbers, [row[f"{name}_seconds"] for row in rows], label=label)
    left.set(title="seconds of each task", xlabel="task", yscale="log")
    right.plot(numbers, [row["resident_bytes"] / 1e9 for row in rows], label="memory of the process, GB")
    right.plot(numbers, [row["store_bytes"] / 1e6 for row in rows], label="store, MB")
    right.set(title="size after each task", xlabel="task", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=90)


if __name__ == "__main__":
    found = measure(sys.argv[1], sys.argv[2:])
    (ROOT / "benchmarks" / "results" / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, ROOT / "docs" / "growth.png")
    print(json.dumps(found["medians_of_tasks_2_to_11_and_of_the_last_10"], indent=1))
