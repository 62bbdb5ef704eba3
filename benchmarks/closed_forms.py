"""Closed-form classifiers on all of cifar100-lite: accuracy, time and size in a store.

The order of classes does not count, and is another one for each seed.

Command: python benchmarks/closed_forms.py with the arguments of grid.py
Writes benchmarks/results/grid/closed_forms.json and the table in docs/results.md (`--table`: only that). The first 100
training images of each class, the first 20 test images, whole images, ViT-Ti/16 at 160 px, the methods' own code on
features computed once (the class token too is scaled to a mean square of 1). Settings were chosen on validation
images (grid.py, penalty.py), never on these.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import safetensors.torch
import torch
from features import Part, backbone, load
from grid import PAGE, RESULTS, accuracy, arguments, fill, lines
from sklearn.linear_model import LogisticRegression

from promptcl.backbone import Backbone
from promptcl.methods._base import Batch, load_method
from promptcl.methods._frozen import FrozenFeatures
from promptcl.runtime.provenance import git_commit
from promptcl.runtime.seeding import task_generator

OUT = RESULTS.with_name("closed_forms.json")
SEEDS = (42, 1, 2)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "nearest class mean": ("ncm", {}),
    "nearest class mean, deep": ("ncm", {"features": "deep"}),
    "ridge": ("ridge", {}),
    "ridge, deep": ("ridge", {"features": "deep"}),
    "ridge, deep, cosine 0.5 (`grow` without rows)": ("ridge", {"features": "deep", "cosine": 0.5}),
    "RanPAC": ("ranpac", {}),
    "RanPAC, width 3,000": ("ranpac", {"width": 3000}),
    "RanPAC, deep": ("ranpac", {"features": "deep"}),
    "RanPAC, deep, width 3,000": ("ranpac", {"features": "deep", "width": 3000}),
}


def one(name: str, settings: dict[str, Any], vit: Backbone, seed: int, train: Part, test: Part) -> dict[str, float]:
    """Learn ten tasks of ten classes from running sums, in the order of the seed; the last accuracy."""
    model = load_method(name)
    method = model(model.Options(**settings), vit, task_generator(seed, 0, "initial values"))
    assert isinstance(method, FrozenFeatures)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
    place = torch.empty(100, dtype=torch.long)
    place[order] = torch.arange(100)
    token = slice(train.x_NF.shape[1] - 2 * vit.width, train.x_NF.shape[1] - vit.width)
    columns = slice(None) if settings.get("features") == "deep" else token
    seconds = []
    for task in range(10):
        start = time.perf_counter()
        rows = torch.isin(train.y_N, order[10 * task : 10 * task + 10])
        method.grow_head(10)
        method.add(train.x_NF[rows][:, columns], place[train.y_N[rows]])
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    method.solve()  # which `learn` does after every task
    solving = time.perf_counter() - start
    logits_NK = method.logits(vit, cast(Batch, SimpleNamespace(query_BD=test.x_NF[:, columns])))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        safetensors.torch.save_file({k: v.contiguous() for k, v in method.state_dict().items()}, file)
        size = file.stat().st_size
    return {
        "accuracy": accuracy(logits_NK, place[test.y_N]),
        "seconds": statistics.fmean(seconds) + solving,
        "bytes": size,
    }


def logistic(train: Part, test: Part, columns: slice) -> dict[str, float]:
    """Logistic regression on all classes at once: what closed forms are to be measured against."""
    start = time.perf_counter()
    model = LogisticRegression(max_iter=300).fit(train.x_NF[:, columns].numpy(), train.y_N.numpy())
    right = (torch.from_numpy(model.predict(test.x_NF[:, columns].numpy())) == test.y_N).double()
    return {"accuracy": 100 * right.mean().item(), "seconds": time.perf_counter() - start}


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__ or "", draws=1)
    if not given.table:
        vit, found = backbone(given.weights), {}
        train, _, test = load("cifar100", given.cifar100, vit, given.features)
        for label, (name, settings) in ROWS.items():
            runs = [one(name, settings, vit, seed, train, test) for seed in SEEDS]
            found[label] = {"method": name, "settings": settings, "runs": runs}
            print(label, runs, flush=True)
        token = slice(train.x_NF.shape[1] - 2 * vit.width, train.x_NF.shape[1] - vit.width)
        for label, columns in (("logistic regression, all at once", token), ("the same, deep", slice(None))):
            found[label] = {"method": "scikit-learn", "settings": {"C": 1.0}, "runs": [logistic(train, test, columns)]}
            print(label, found[label], flush=True)
        content = {"rows": found, "seeds": SEEDS, "git_commit": git_commit()}
        OUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    rows: list[list[object]] = []
    for label, row in json.loads(OUT.read_text(encoding="utf-8"))["rows"].items():
        values = [run["accuracy"] for run in row["runs"]]
        spread = f" ± {statistics.stdev(values):.2f}" if len(set(values)) > 1 else ""
        size = f"{row['runs'][0]['bytes'] / 1e6:.1f}" if "bytes" in row["runs"][0] else "-"
        seconds = statistics.fmean(run["seconds"] for run in row["runs"])
        rows.append([label, f"{statistics.fmean(values):.2f}{spread}", f"{seconds:.2f}", size])
    fill(PAGE, {"closed-forms": lines(["", "accuracy %", "seconds a task, features known", "MB in the store"], rows)})


if __name__ == "__main__":
    main()
