"""The default of `promptcl learn` beside simple classifiers, from 1 to 100 images a class.

Command: python benchmarks/grid.py --cifar100 cifar100.tar.gz --five FOLDER --weights vit_tiny_patch16_224.safetensors
Writes benchmarks/results/grid/cells.json and the tables of docs/results.md (`--table`: only these, from the JSON;
`--unknown`: what is called unknown is measured anew, and accuracies stay, which take ten times as long).

A cell is a data set, a number of classes and a number of images a class; in each of ten draws other classes and other
training images are taken, and accuracy is measured on validation images (training images that nothing else uses).
ViT-Ti/16 at 160 px, whole images. The answers are those of the method and settings of recipe `grow`; the others are
the nearest class mean (cosine) and scikit-learn's logistic regression (C = 1), each on the class token and on the deep
feature that `grow` reads. `unknown` is calibrated on the training images alone, and measured on the validation images
of the classes drawn and of those left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from features import FIVE, Part, backbone, load
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.layers import ClassMeans
from promptcl.learner.calibration import measure
from promptcl.methods import ridge
from promptcl.methods._base import Batch
from promptcl.recipes.load import load_config
from promptcl.runtime.provenance import git_commit, versions
from promptcl.runtime.seeding import task_generator

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "grid" / "cells.json", ROOT / "docs" / "results.md"
CLASSES = {"cifar100": (2, 5, 10, 20, 50, 100), **dict.fromkeys(FIVE, (2, 5, 10))}
IMAGES = (1, 2, 3, 5, 8, 14, 50, 100)
UNBALANCED = "40 to 3"
NAMES = {
    "grow": "`grow`",
    "ncm": "class mean",
    "logreg": "logistic",
    "ncm deep": "class mean, deep",
    "logreg deep": "logistic, deep",
}
UNKNOWN = ("passed", "strangers", "strangers ncm")
Cell = dict[str, Any]


class Grow:
    """The method of recipe `grow`, given features instead of images."""

    def __init__(self, vit: Backbone, train: Part, classes: int) -> None:
        """Learn the rows of `train`."""
        settings = {key: value for key, value in load_config("grow").method.items() if key != "name"}
        options = ridge.RidgeOptions.model_validate(settings)
        self.method = ridge.Model(options, vit, task_generator(0, 0, "initial values"))
        self.vit = vit
        assert load_config("grow").method["name"] == "ridge"
        self.method.grow_head(classes)
        self.method.rows.grow(len(train.y_N))
        self.method.rows.add(train.x_NF, train.y_N)
        self.method.fit(train.x_NF, train.y_N)

    def answers(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and familiarity."""
        batch = cast(Batch, SimpleNamespace(query_BD=x_NF))
        logits_NK = self.method.logits(self.vit, batch)
        return logits_NK, self.method.familiarity(self.vit, batch, logits_NK)


def draw(parts: tuple[Part, Part, Part], classes: int, images: int | str, seed: int) -> tuple[Part, Part, Part]:
    """Training and validation images of some classes, numbered from 0, and validation images of all other classes."""
    train, held, _ = parts
    random = np.random.default_rng([seed, classes, images if isinstance(images, int) else 0])
    chosen = random.permutation(int(train.y_N.max()) + 1)[:classes]
    rows = []
    for k, name in enumerate(chosen):
        count = images if isinstance(images, int) else round(40 * (3 / 40) ** (k / max(1, classes - 1)))
        rows.append(random.permutation(np.flatnonzero(train.y_N.numpy() == name))[:count])
    number = torch.full((int(train.y_N.max()) + 1,), -1)
    number[torch.from_numpy(chosen)] = torch.arange(classes)
    known = (number[held.y_N] >= 0).numpy()
    inside, outside, learned = (
        held.of(np.flatnonzero(known)),
        held.of(np.flatnonzero(~known)),
        train.of(np.concatenate(rows)),
    )
    return Part(learned.x_NF, number[learned.y_N]), Part(inside.x_NF, number[inside.y_N]), outside


def accuracy(logits_NK: Tensor, y_N: Tensor) -> float:
    """Percent."""
    return 100 * (logits_NK.argmax(1) == y_N).double().mean().item()


def class_mean(train: Part, x_NF: Tensor, classes: int) -> Tensor:
    """Cosines with the class means."""
    means = ClassMeans(train.x_NF.shape[1])
    means.grow(classes)
    means.fit(train.x_NF, train.y_N)
    found: Tensor = means(x_NF)
    return found


def logistic(train: Part, x_NF: Tensor) -> Tensor:
    """Scores of a logistic regression; rotated into the span of the training rows, which changes no prediction."""
    mean_F = train.x_NF.double().mean(0)
    rows, more = train.x_NF.double() - mean_F, x_NF.double() - mean_F
    if len(rows) < rows.shape[1]:
        basis = torch.linalg.qr(rows.T).Q
        rows, more = rows @ basis, more @ basis
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(max_iter=300).fit(rows.numpy(), train.y_N.numpy())
    scores = torch.from_numpy(np.asarray(model.decision_function(more.numpy())))
    return torch.stack([-scores, scores], 1) if scores.ndim == 1 else scores


def one(
    parts: tuple[Part, Part, Part],
    vit: Backbone,
    classes: int,
    images: int | str,
    seed: int,
    only_unknown: bool = False,
) -> dict[str, float]:
    """Accuracies of one draw, and what is called unknown."""
    train, held, strangers = draw(parts, classes, images, seed)
    token = slice(train.x_NF.shape[1] - 2 * vit.width, train.x_NF.shape[1] - vit.width)
    tokens, tests = Part(train.x_NF[:, token], train.y_N), held.x_NF[:, token]
    start = time.perf_counter()
    grow = Grow(vit, train, classes)
    seconds = time.perf_counter() - start
    logits_NK, familiar_N = grow.answers(held.x_NF)
    simple_NK = class_mean(tokens, tests, classes)
    found: dict[str, float] = {}
    if not only_unknown:
        found = {
            "grow": accuracy(logits_NK, held.y_N),
            "ncm": accuracy(simple_NK, held.y_N),
            "ncm deep": accuracy(class_mean(train, held.x_NF, classes), held.y_N),
            "logreg": accuracy(logistic(tokens, tests), held.y_N),
            "logreg deep": accuracy(logistic(train, held.x_NF), held.y_N),
            "seconds": seconds,
        }
    left = grow.method.out_of_fold()
    assert left is not None
    told = torch.bincount(left.labels_N, minlength=classes)[left.labels_N] > 1
    if not told.any() or not len(strangers.y_N):
        return found
    threshold = measure(left.logits_NK[told], left.labels_N[told], left.familiarity_N[told]).threshold
    if threshold is None:
        return found
    right = logits_NK.argmax(1) == held.y_N
    passed = familiar_N[right] >= threshold
    found["passed"] = 100 * passed.double().mean().item()
    found["strangers"] = 100 * (grow.answers(strangers.x_NF)[1] < threshold).double().mean().item()
    # the nearest class mean, at the threshold that lets the same share of its own right answers pass
    sure_N = simple_NK.softmax(1).max(1).values
    limit = torch.quantile(sure_N[simple_NK.argmax(1) == held.y_N], 1 - passed.float().mean())
    other_N = class_mean(tokens, strangers.x_NF[:, token], classes).softmax(1).max(1).values
    found["strangers ncm"] = 100 * (other_N < limit).double().mean().item()
    return found


def measure_all(given: argparse.Namespace) -> None:
    """All cells; the file is written after each."""
    vit, commit = backbone(given.weights), git_commit()
    old = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if given.only or given.unknown else []
    cells: list[Cell] = []
    for name, numbers in CLASSES.items():
        parts = load(name, given.cifar100 if name == "cifar100" else given.five, vit, given.features)
        for classes in numbers:
            for images in (*IMAGES, UNBALANCED):
                same = {"data": name, "classes": classes, "images": images}
                before = [cell for cell in old if cell.items() >= same.items()]
                if given.only and str(images) != given.only:
                    cells += before
                    continue
                draws = [one(parts, vit, classes, images, seed, given.unknown) for seed in range(given.draws)]
                keys = sorted({key for found in draws for key in found})
                values = {key: [found[key] for found in draws if key in found] for key in keys}
                cell = {**same, "values": values, "git_commit": commit}
                if given.unknown:
                    kept = {key: value for key, value in before[0]["values"].items() if key not in UNKNOWN}
                    cell = {**before[0], "values": kept | values, "unknown_git_commit": commit}
                cells.append(cell)
                print(
                    name, classes, images, {key: round(statistics.fmean(v), 1) for key, v in values.items()}, flush=True
                )
                results = {"cells": cells, "draws": given.draws, "versions": versions()}
                RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def mean(cell: Cell, key: str) -> float:
    """Mean over the draws."""
    return statistics.fmean(cell["values"][key])


def shown(cell: Cell, key: str) -> str:
    """Mean and standard error."""
    values = cell["values"][key]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{mean(cell, key):.1f} ± {error:.1f}"


def gap(cell: Cell) -> float:
    """Points of `grow` above the best of all simple classifiers in this cell (the best by its mean)."""
    return mean(cell, "grow") - max(mean(cell, key) for key in NAMES if key != "grow")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/results.md by name."""
    cells = results["cells"]
    told = [cell for cell in cells if "passed" in cell["values"]]
    sizes = (*IMAGES, UNBALANCED)
    by_size = [(f"{n} images a class", [cell for cell in cells if cell["images"] == n]) for n in sizes]
    told_by_size = [(f"{n} images a class", [cell for cell in told if cell["images"] == n]) for n in sizes]
    every = [
        [cell["data"], cell["classes"], cell["images"], *(shown(cell, key) for key in NAMES), f"{gap(cell):+.1f}"]
        for cell in cells
    ]
    titles = ["right answers that pass", "never learned, called unknown", "the same by the class mean's probability"]
    return {
        "grid": lines(["", "cells", *NAMES.values()], _means([*by_size, ("all", cells)], tuple(NAMES))),
        "grid-cells": lines(["data", "classes", "images a class", *NAMES.values(), "above the best"], every),
        "grid-unknown": lines(["", "cells", *titles], _means([*told_by_size, ("all", told)], UNKNOWN)),
    }


def _means(groups: list[tuple[str, list[Cell]]], keys: tuple[str, ...]) -> list[list[object]]:
    """A row for each group of cells: its name, its size, and the mean of each key."""
    return [
        [name, len(cells), *(f"{statistics.fmean(mean(cell, key) for cell in cells):.1f}" for key in keys)]
        for name, cells in groups
        if cells
    ]


def lines(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    start = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * (len(head) - 1)]
    return "\n".join([*start, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def arguments(text: str, draws: int) -> argparse.Namespace:
    """What the command was given."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--cifar100", "--five", "--weights"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--features", type=Path, default=ROOT / "runs" / "features", help="where features are kept")
    parser.add_argument("--draws", type=int, default=draws)
    parser.add_argument("--only", help="measure anew the cells of so many images a class, such as 14 or '40 to 3'")
    parser.add_argument("--unknown", action="store_true", help="measure only what is called unknown anew")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    return parser.parse_args()


def fill(page: Path, found: dict[str, str]) -> None:
    """Write each table between its marks in the page."""
    text = page.read_text(encoding="utf-8")
    for name, table in found.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        if begin not in text:
            print(f"{page.name} has no line {begin.strip()}; the table is\n{table}")
            continue
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}{table}\n{end}{rest.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__ or "", draws=10)
    if not given.table:
        measure_all(given)
    fill(PAGE, tables(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
