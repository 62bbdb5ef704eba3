"""Ways to choose the penalty of the ridge regression, compared on validation images of the grid.

Command: python benchmarks/penalty.py with the arguments of grid.py
Writes benchmarks/results/grid/penalty.json and the table in docs/results.md (`--table`: only that). Deep features, no
cosine; what was tried and dropped stands beside what `RidgeHead` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from features import FIVE, Part, backbone, load
from grid import PAGE, RESULTS, accuracy, arguments, draw, fill, lines
from torch import Tensor

from promptcl.layers import RidgeHead
from promptcl.layers.ridge import Fit

OUT = RESULTS.with_name("penalty.json")
SIZES = (1, 3, 8, 14)
CELLS = [*(("cifar100", k, n) for k in (5, 20) for n in SIZES), *((name, 10, n) for name in FIVE for n in SIZES)]
FACTORS = [10.0 ** (0.25 * step) for step in range(-20, 13)]


def candidates(fit: Fit) -> list[float]:
    """The penalties that all rules choose from."""
    return [factor * fit.values_R.sum().item() / fit.count_K.sum().item() for factor in FACTORS]


def residuals(fit: Fit, penalty: float) -> tuple[Tensor, Tensor]:
    """Squared error on the training images, and the degrees of freedom."""
    n, power_R = fit.count_K.sum(), fit.targets_RK.square().sum(1) / fit.values_R
    left_R = penalty / (fit.values_R + penalty)
    rest = (n - fit.count_K.square().sum() / n - power_R.sum()).clamp_min(0)
    return (power_R * left_R.square()).sum() + rest, (1 - left_R).sum() + 1


def squared(train: Part, head: RidgeHead) -> float:
    """Generalised cross-validation of the squared error (Golub, Heath and Wahba 1979)."""
    fit = head._fit_of(train.x_NF.double(), train.y_N)
    n = float(fit.count_K.sum())
    scores = []
    for penalty in candidates(fit):
        error, freedom = residuals(fit, penalty)
        scores.append(float(error / max(1e-9, 1 - float(freedom) / n) ** 2))
    return candidates(fit)[scores.index(min(scores))]


def left_out(train: Part, head: RidgeHead) -> float:
    """The best correlation of labels and exact predictions of left-out images: needs the features of all images."""
    fit = head._fit_of(train.x_NF.double(), train.y_N)
    label_NK = torch.nn.functional.one_hot(train.y_N, len(fit.count_K)).double()
    label_NK = label_NK - label_NK.mean(0)
    scores = []
    for penalty in candidates(fit):
        alone = RidgeHead(head.width, penalty, "absolute", sums=False)
        alone.grow(len(fit.count_K))
        out_NK = alone.out_of_fold(train.x_NF, train.y_N)
        out_NK = out_NK - fit.count_K / fit.count_K.sum()
        scores.append(float((out_NK * label_NK).sum() / out_NK.norm().clamp_min(1e-30)))
    return candidates(fit)[scores.index(max(scores))]


def held_fifth(train: Part, head: RidgeHead) -> float:
    """The smallest squared error on every fifth image by the classifier of the others, from two pairs of sums."""
    fifth = torch.arange(len(train.y_N)) % 5 == 4
    if not fifth.any():
        return 1.0
    rest = head._fit_of(train.x_NF[~fifth].double(), train.y_N[~fifth])
    x_NF, y_N = train.x_NF[fifth].double(), train.y_N[fifth]
    label_NK = torch.nn.functional.one_hot(y_N, len(rest.count_K)).double()
    errors = []
    for penalty in candidates(rest):
        weight_KF, bias_K = rest.weights(penalty, balance=False)
        errors.append((x_NF @ weight_KF.T + bias_K - label_NK).square().sum().item())
    return candidates(rest)[errors.index(min(errors))]


def oracle_shrinkage(train: Part, head: RidgeHead) -> float:
    """The penalty that the oracle approximating shrinkage (Chen et al. 2010) of the total covariance amounts to."""
    fit = head._fit_of(train.x_NF.double(), train.y_N)
    n, p = fit.count_K.sum(), len(fit.scale_D)
    values = fit.values_R / n
    square, trace = values.square().sum(), values.sum()
    share = ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * (square - trace**2 / p))
    share = share.clamp(1e-9, 1 - 1e-9)
    return float(share / (1 - share) * trace / p * n)


def shipped(train: Part, head: RidgeHead) -> float:
    """What `RidgeHead` does."""
    return head._fit_of(train.x_NF.double(), train.y_N).automatic()


RULES: dict[str, Callable[[Part, RidgeHead], float]] = {
    "shipped: correlation, from sums": shipped,
    "squared error, from sums (GCV)": squared,
    "squared error on a held-out fifth, from sums": held_fifth,
    "shrinkage of the covariance, from sums (OAS)": oracle_shrinkage,
    "correlation, each image left out (needs rows)": left_out,
}
FIXED = {"0.01 of each variance (before)": 0.01, "0.1 of each variance (before)": 0.1, "1 of each variance": 1.0}


def cell(parts: tuple[Part, Part, Part], classes: int, images: int, draws: int) -> dict[str, float]:
    """Mean accuracy of each rule."""
    found: dict[str, list[float]] = {}
    for seed in range(draws):
        train, held, _ = draw(parts, classes, images, seed)
        width = train.x_NF.shape[1]
        heads = {name: RidgeHead(width, value, "each", sums=False) for name, value in FIXED.items()}
        chosen = {name: rule(train, _head(width, classes)) for name, rule in RULES.items()}
        heads |= {name: RidgeHead(width, value, "absolute", sums=False) for name, value in chosen.items()}
        for name, head in heads.items():
            head.grow(classes)
            head.fit(train.x_NF, train.y_N, balance=True)
            found.setdefault(name, []).append(accuracy(head(held.x_NF), held.y_N))
    return {name: statistics.fmean(values) for name, values in found.items()}


def _head(width: int, classes: int) -> RidgeHead:
    head = RidgeHead(width, sums=False)
    head.grow(classes)
    return head


def main() -> None:
    """Measure and write."""
    given: argparse.Namespace = arguments(__doc__ or "", draws=3)
    if not given.table:
        vit, found = backbone(given.weights), {}
        for name, classes, images in CELLS:
            parts = load(name, given.cifar100 if name == "cifar100" else given.five, vit, given.features)
            found[f"{name} {classes} {images}"] = cell(parts, classes, images, given.draws)
            print(name, classes, images, {key: round(v, 1) for key, v in found[f"{name} {classes} {images}"].items()})
        OUT.write_text(json.dumps({"cells": found, "draws": given.draws}, indent=1) + "\n", encoding="utf-8")
    cells = json.loads(OUT.read_text(encoding="utf-8"))["cells"]
    rows: list[list[object]] = []
    for name in [*RULES, *FIXED]:
        means = [statistics.fmean(v[name] for key, v in cells.items() if key.endswith(f" {n}")) for n in SIZES]
        rows.append([name, *(f"{m:.1f}" for m in means), f"{statistics.fmean(v[name] for v in cells.values()):.2f}"])
    fill(PAGE, {"penalty": lines(["", *(f"{n} a class" for n in SIZES), "all"], rows)})


if __name__ == "__main__":
    main()
