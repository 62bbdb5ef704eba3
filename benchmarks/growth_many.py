"""A thousand tasks of one class each: seconds and memory of every task, for each closed-form head and for L2P.

Command: python benchmarks/growth_many.py [METHOD ...]     (adds to benchmarks/results/growth_many.json)
         python benchmarks/growth_many.py --draw           (docs/growth_many.png and the table of docs/speed.md)
         python benchmarks/growth_many.py --check          (whether that table is current)
$DATA is CIFAR-100 in folders or an archive of them. Its classes are divided by the number of an image, so that a
thousand names exist; three images of each are learned and one is tested. Seconds are those that the process computed.
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

import numpy as np
from growth import ROOT, resident
from marked import write

from promptcl.backbone import Backbone
from promptcl.config import DataConfig
from promptcl.data import ImageSet
from promptcl.data.splits import load_split
from promptcl.experiments.speed import circumstances
from promptcl.learner import Learner
from promptcl.recipes.load import load_config

RESULTS, CHART = ROOT / "benchmarks" / "results" / "growth_many.json", ROOT / "docs" / "growth_many.png"
PARTS = {"train": 3, "test": 1}
"""Images of each class."""
EVERY = 100
"""All tasks so far are tested after so many."""
VIT = ["backbone.name=test_vit", "backbone.weights=random", "backbone.image_size=32", "device=cpu", "data.augment=none"]
METHODS = {
    "ncm": ["method.name=ncm"],
    "ridge": ["method.name=ridge"],
    "ranpac": ["method.name=ranpac", "method.width=500"],
    "anacp": ["method.name=anacp", "method.width=500", "method.samples=20"],
    "l2p_ridge": ["method.name=l2p_ridge", "train.epochs=1"],
    "l2p": ["method.name=l2p", "train.epochs=1"],
}


def divided(root: str, tasks: int) -> dict[str, list[ImageSet]]:
    """Training and test images of each task."""
    times = -(-tasks // 100)
    config = DataConfig(name="folder", root=root, train_per_class=3 * times, test_per_class=times)
    split, found = load_split(config), {}
    for part, per in PARTS.items():
        images, pixels, names = getattr(split, part), [], []
        for label, name in enumerate(images.classes):
            for place, row in enumerate(np.flatnonzero(np.asarray(images.labels) == label)):
                pixels.append(images.image(int(row)).permute(1, 2, 0).numpy())
                names.append(f"{name} {place // per}")
        whole, order = ImageSet.from_arrays(np.stack(pixels), names), sorted(set(names))[:tasks]
        found[part] = [whole.of_classes([name]) for name in order]
    return found


def measure(name: str, sets: dict[str, list[ImageSet]], backbone: Backbone) -> dict[str, Any]:
    """Learn the tasks one by one, save and test each; one entry a task."""
    learner, rows = Learner(load_config("demo", [*VIT, *METHODS[name]]), backbone), []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        for number, (train, test) in enumerate(zip(sets["train"], sets["test"], strict=True), 1):
            marks = [time.process_time()]
            learner.learn(train)
            marks.append(time.process_time())
            learner.save(store)
            marks.append(time.process_time())
            learner.evaluate(test)
            marks.append(time.process_time())
            row: dict[str, Any] = dict(
                zip(("learn", "save", "evaluate"), np.diff(marks).round(5).tolist(), strict=True)
            )
            row |= {"task": number, "resident_bytes": resident()}
            row["store_bytes"] = sum(file.stat().st_size for file in store.iterdir())
            if number % EVERY == 0:
                start = time.process_time()
                for images in sets["test"][:number]:
                    learner.evaluate(images)
                row["evaluate_all"] = time.process_time() - start
                print(name, json.dumps(row), flush=True)
            rows.append(row)
    part = len(rows) // 10
    ends = {
        key: [statistics.median(row[key] for row in half) for half in (rows[1 : part + 1], rows[-part:])]
        for key in ("learn", "save", "evaluate", "resident_bytes", "store_bytes")
    }
    return {
        "method": name,
        "first_and_last_tenth": ends,
        "tasks": rows,
        **circumstances(learner.config, learner.device),
    }


def draw(results: list[dict[str, Any]]) -> None:
    """Four charts: learning, testing all, the store, memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4))
    titles = ("learn a task, ms", "test all tasks so far, s", "store, MB", "memory of the process, MB")
    for one in results:
        rows = one["tasks"]
        parts = [rows[i : i + 20] for i in range(0, len(rows), 20)]
        at = [part[-1]["task"] for part in parts]
        all_of = [row for row in rows if "evaluate_all" in row]
        axes[0].plot(at, [1e3 * statistics.median(row["learn"] for row in part) for part in parts], label=one["method"])
        axes[1].plot([row["task"] for row in all_of], [row["evaluate_all"] for row in all_of])
        axes[2].plot(at, [part[-1]["store_bytes"] / 1e6 for part in parts])
        axes[3].plot(at, [part[-1]["resident_bytes"] / 1e6 for part in parts])
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="task")
        axis.grid(alpha=0.3)
    for axis in (axes[0], axes[2]):
        axis.set(yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
    axes[1].legend(axes[0].get_lines(), [one["method"] for one in results], fontsize=7)
    figure.tight_layout()
    figure.savefig(CHART, dpi=80)


def table(results: list[dict[str, Any]]) -> str:
    """Medians of the first and of the last tenth of the tasks, a line each method."""
    shown = {"learn": (1e3, ".0f"), "save": (1e3, ".0f"), "evaluate": (1e3, ".0f")}
    shown |= {"store_bytes": (1e-6, ".2f"), "resident_bytes": (1e-9, ".2f")}
    head = "learn a task, ms | save, ms | test a task, ms | store, MB | memory, GB | test all thousand, s"
    lines = [f"| | {head} |\n|:--|--:|--:|--:|--:|--:|--:|\n"]
    for one in sorted(results, key=lambda one: list(METHODS).index(one["method"])):
        ends = one["first_and_last_tenth"]
        cells = [" and ".join(format(unit * end, form) for end in ends[key]) for key, (unit, form) in shown.items()]
        lines.append(f"| `{one['method']}` | {' | '.join(cells)} | {one['tasks'][-1]['evaluate_all']:.1f} |\n")
    return "".join(lines)


def main(arguments: list[str]) -> int:
    """Measure what is asked for, each method written as soon as it is there; the exit code is that of `--check`."""
    if arguments[:1] not in (["--draw"], ["--check"]):
        sets = divided(os.environ["DATA"], int(os.environ.get("TASKS", "1000")))
        backbone = Backbone.create(load_config("demo", VIT).backbone)
        for name in arguments or METHODS:
            found = measure(name, sets, backbone)
            known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
            known = [one for one in known if one["method"] != name]
            RESULTS.write_text(json.dumps([*known, found]) + "\n", encoding="utf-8")
            print(name, json.dumps(found["first_and_last_tenth"]), flush=True)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    if arguments != ["--check"]:
        draw(results)
    tables, command = {"growth-many": table(results)}, "python benchmarks/growth_many.py --draw"
    return write(ROOT / "docs" / "speed.md", tables, command, check=arguments == ["--check"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
