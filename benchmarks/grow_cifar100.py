"""Ten classes from a folder, ten more in a new process: the same learner as one process makes, and as `train` makes.

Command: python benchmarks/grow_cifar100.py --data cifar100.tar.gz --weights vit_tiny_patch16_224.safetensors
Writes benchmarks/results/grow.json and the table in docs/guide.md (`--table`: only that, from the JSON).

The first 20 classes of CIFAR-100, 100 training and 20 test images each as in the README's cifar100-lite, become PNG
files in folders. Three ways learn them in two tasks: the command (`promptcl learn`, one process a task), one Python
process (`Learner.learn` twice), and the benchmark path (`promptcl train`, two tasks). Compared bit for bit are the
saved tensors (sha256), the classes, and the logits of all test images. A row that is there is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from promptcl import store
from promptcl.config.schema import DataConfig
from promptcl.data.images import ImageSet
from promptcl.data.inputs import labelled
from promptcl.data.splits import load_split
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config
from promptcl.runtime.provenance import git_commit, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS, GUIDE = ROOT / "benchmarks" / "results" / "grow.json", ROOT / "docs" / "guide.md"
TABLE = re.compile(r"(?<=<!-- grow -->\n).*?(?=<!-- end -->)", re.DOTALL)
BACKBONE = ["backbone.name=vit_tiny_patch16_224", "backbone.image_size=160", "backbone.precision=bf16", "device=cpu"]
# Label, recipe, further settings, ways to learn.
ROWS: list[tuple[str, str, list[str], list[str]]] = [
    ("`grow` (`ridge` on deep features; nothing is trained)", "grow", [], ["command", "python", "train"]),
    ("`l2p`, one epoch", "l2p", ["train.batch_size=16", "train.epochs=1"], ["command", "python", "train"]),
]


def write_tasks(train: ImageSet, test: ImageSet, root: Path, per_task: int) -> None:
    """ROOT/train/CLASS/NUMBER.png and ROOT/test/...; ROOT/task1, task2, ... hold links to the training folders."""
    for part, images in (("train", train), ("test", test)):
        for i, label in enumerate(images.labels):
            file = root / part / images.classes[label] / f"{i:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.image(i).permute(1, 2, 0).numpy()).save(file)
    for k, name in enumerate(sorted(train.classes)):
        for part, folder in (("train", f"task{k // per_task + 1}"), ("test", f"test{k // per_task + 1}")):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / name).symlink_to(root / part / name, target_is_directory=True)


def _new(root: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=root))


def promptcl(*words: object) -> str:
    """One call of the command in a process of its own, with as many threads as this one; what it prints."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "promptcl", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}).stdout


def by_command(root: Path, recipe: str, settings: Sequence[str]) -> tuple[Path, list[list[float]]]:
    """`promptcl learn` for each task and `promptcl evaluate` after it; the store and the accuracies in percent."""
    folder, accuracies = _new(root) / "store", []
    for task in (1, 2):
        made = ["--recipe", recipe, *settings] if task == 1 else []
        promptcl("learn", folder, root / f"task{task}", *made, "--quiet")
        tests = [promptcl("evaluate", folder, root / f"test{k}", "--json") for k in range(1, task + 1)]
        accuracies.append([json.loads(text)["accuracy"] for text in tests])
    return folder, accuracies


def by_python(root: Path, recipe: str, settings: Sequence[str]) -> tuple[Path, list[list[float]]]:
    """`Learner.learn` twice in this process; its logits are compared before it is saved and loaded."""
    folder, accuracies = _new(root) / "store", []
    learner = Learner(load_config(recipe, settings))
    for task in (1, 2):
        learner.learn(root / f"task{task}")
        accuracies.append([learner.evaluate(root / f"test{k}").accuracy for k in range(1, task + 1)])
    learner.save(folder)
    assert logits(learner, root) == logits(Learner.load(folder), root), "loading changed the logits"
    return folder, accuracies


def by_train(root: Path, recipe: str, settings: Sequence[str]) -> tuple[Path, list[list[float]]]:
    """`promptcl train` with two tasks on the same folders."""
    out = _new(root) / "run"
    data = ["data.name=folder", f"data.root={root}", "tasks=2"]
    promptcl("train", recipe, *settings, *data, "--out", out, "--quiet")
    matrix = json.loads((out / "results.json").read_text(encoding="utf-8"))["accuracy_matrix"]
    return out / "learner", [row[: k + 1] for k, row in enumerate(matrix)]


WAYS = {"command": by_command, "python": by_python, "train": by_train}


def logits(learner: Learner, root: Path) -> str:
    """sha256 of the logits of all test images, float32."""
    images = labelled(root / "test")
    found = learner.logits(images, torch.zeros(len(images), dtype=torch.long, device=learner.device))
    return hashlib.sha256(found.cpu().contiguous().numpy().tobytes()).hexdigest()


def fingerprint(folder: Path, root: Path) -> dict[str, Any]:
    """What must be equal: classes, sha256 of the file of tensors, sha256 of the logits."""
    state = json.loads((folder / "learner.json").read_text(encoding="utf-8"))["state"]["sha256"]
    return {"classes": store.load(folder).classes, "state": state, "logits": logits(Learner.load(folder), root)}


def compare(root: Path, recipe: str, settings: Sequence[str], ways: Sequence[str]) -> dict[str, Any]:
    """Learn the tasks in `root` in each of WAYS: accuracies and seconds of each, and whether all ended equal."""
    found: dict[str, Any] = {}
    for way in ways:
        start = time.perf_counter()
        folder, accuracies = WAYS[way](root, recipe, settings)
        seconds = time.perf_counter() - start
        found[way] = {"accuracies": accuracies, "seconds": seconds, **fingerprint(folder, root)}
    equal = {
        key: len({json.dumps(one[key]) for one in found.values()}) == 1
        for key in ("classes", "state", "logits", "accuracies")
    }
    return {"ways": found, "equal": equal if len(ways) > 1 else None}


def table(results: dict[str, Any]) -> str:
    """The table of docs/guide.md."""
    names = {"command": "`promptcl learn`, a process a task", "train": "`promptcl train`, two tasks"}
    lines = [
        "| settings | learned by | task 1 after 1 | task 1 after 2 | task 2 after 2 |",
        "|:--|:--|--:|--:|--:|",
    ]
    for row in results["rows"]:
        for way, name in names.items():
            if one := row["ways"].get(way):
                (first,), (old, new) = one["accuracies"]
                lines.append(f"| {row['label']} | {name} | {first:.1f} | {old:.1f} | {new:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, write, and exit with 1 where something that must be equal is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="cifar100.tar.gz, as train/CLASS/... and test/CLASS/...")
    parser.add_argument("--weights", type=Path, help="vit_tiny_patch16_224.safetensors")
    parser.add_argument("--table", action="store_true", help="only write the table, from benchmarks/results/grow.json")
    given = parser.parse_args()
    if not given.table:
        if given.data is None or given.weights is None:
            parser.error("give --data and --weights, or --table")
        measure(given.data, given.weights)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = GUIDE.read_text(encoding="utf-8")
    GUIDE.write_text(TABLE.sub(lambda _: table(results), text), encoding="utf-8")
    unequal = [row["label"] for row in results["rows"] if row["equal"] and not all(row["equal"].values())]
    print(table(results), *(f"not equal: {label}" for label in unequal), sep="\n")
    return int(bool(unequal))


def measure(data: Path, weights: Path) -> None:
    """All rows, on 20 classes; the file is written after each."""
    old = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    split = load_split(DataConfig(name="folder", root=str(data), train_per_class=100, test_per_class=20))
    classes = split.train.classes[:20]
    commit, rows = git_commit(), []  # before the file is written, which would count as a change
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_tasks(split.train.of_classes(classes), split.test.of_classes(classes), root, 10)
        for label, recipe, changes, ways in ROWS:
            settings = [*BACKBONE, f"backbone.weights={weights.absolute()}", *changes]
            shown = [*BACKBONE, f"backbone.weights={weights.name}", *changes]
            about = {"label": label, "recipe": recipe, "settings": shown}
            kept = [row for row in old if row.items() >= about.items() and list(row["ways"]) == ways]
            rows += kept or [{**about, **compare(root, recipe, settings, ways), "git_commit": commit}]
            results = {
                "rows": rows,
                "images": {"classes": len(classes), "train_per_class": 100, "test_per_class": 20},
                "threads": torch.get_num_threads(),
                "versions": versions(),
            }
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
