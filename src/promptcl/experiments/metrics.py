"""Metrics of continual learning as functions of the accuracy matrix.

`matrix[t][i]` is the accuracy (percent, top-1, no task identity given) on the test set of task i after learning task t;
None above the diagonal. T tasks, numbered from 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Sequence[float | None]


def _value(matrix: Sequence[Row], t: int, i: int) -> float:
    """Accuracy on task i after task t. Raises ValueError where it was not measured."""
    value = matrix[t][i]
    if value is None:
        raise ValueError(f"accuracy of task {i} after task {t} is missing")
    return value


def average_accuracy(matrix: Sequence[Row]) -> float:
    """Mean over tasks of the accuracy after the last: A_T = 1/T sum_i a[T-1][i] (Lopez-Paz & Ranzato 2017)."""
    last = len(matrix) - 1
    return sum(_value(matrix, last, i) for i in range(len(matrix[last]))) / len(matrix[last])


def forgetting(matrix: Sequence[Row]) -> float | None:
    """Mean over old tasks of the best earlier accuracy minus the last one (Chaudhry et al. 2018, eq. 3).

    F = 1/(T-1) sum_{i<T-1} (max_{i<=j<T-1} a[j][i] - a[T-1][i]). The maximum leaves out the last row, so a task that
    got better counts negative; the L2P release includes it, so its number is never negative. None for one task.
    """
    last = len(matrix) - 1
    if last < 1:
        return None
    best_T = np.full(last, -np.inf)
    for t in range(last + 1):
        row = np.array(matrix[t][: min(t + 1, last)], dtype=float)  # None becomes nan
        if np.isnan(row).any():
            _value(matrix, t, int(np.isnan(row).argmax()))
        if t < last:
            best_T[: t + 1] = np.maximum(best_T[: t + 1], row)
    return float(sum((best_T - row).tolist()) / last)


def learning_accuracy(matrix: Sequence[Row]) -> float:
    """Mean accuracy of each task just after it was learned: 1/T sum_i a[i][i] (Riemer et al. 2019)."""
    return sum(_value(matrix, i, i) for i in range(len(matrix))) / len(matrix)


def average_incremental_accuracy(matrix: Sequence[Row]) -> float:
    """Mean over t of the average accuracy after task t (Rebuffi et al. 2017, iCaRL)."""
    means = [sum(_value(matrix, t, i) for i in range(t + 1)) / (t + 1) for t in range(len(matrix))]
    return sum(means) / len(means)


def online_accuracy(answers: Sequence[Sequence[int]]) -> float | None:
    """Percent answered right of all images that came so far, each before it was learned (prequential accuracy).

    answers: of each micro-task the images that were answered right, and all of them. None where there are none.
    """
    total = sum(images for _, images in answers)
    return 100.0 * sum(right for right, _ in answers) / total if total else None


def anytime_accuracy(points: Sequence[tuple[int, float]]) -> float | None:
    """Area under the curve of accuracy over a stream, A_AUC (Koh et al. 2022, eq. 1), divided by its length.

    points: micro-tasks learned when an accuracy was measured, and the accuracy, which stands for all since the last
    one. Measured at even distances this is their mean, as in the public code. None where there are none.
    """
    length = points[-1][0] if points else 0
    starts = [0, *(learned for learned, _ in points)]
    area = sum((learned - start) * accuracy for start, (learned, accuracy) in zip(starts, points, strict=False))
    return area / length if length else None


def selection_entropy(counts: Sequence[int]) -> float:
    """Entropy in bits of how often each prompt was selected: log2(n) where n prompts share all of it equally."""
    total = sum(counts)
    return -sum(n / total * math.log2(n / total) for n in counts if n) + 0.0


def task_inference(counts: Sequence[Sequence[int]]) -> float | None:
    """Share in percent of the test images that took the prompts of their own task; None without images.

    counts: of the images of each task, in order, how many took those of each task.
    """
    total = sum(map(sum, counts))
    return 100 * sum(row[task] for task, row in enumerate(counts)) / total if total else None


def used_prompts(counts: Sequence[int], share: float = 0.01) -> int:
    """Number of prompts with at least `share` of all selections; the first steps of training touch more."""
    return sum(n > 0 and n >= share * sum(counts) for n in counts)


def mean_std(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and sample standard deviation (0 for a single value) over seeds; None if a value is missing."""
    numbers = [value for value in values if value is not None]
    if not numbers or len(numbers) < len(values):
        return None
    return statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def speed(runs: Sequence[Sequence[Mapping[str, Any]]], kind: str) -> float | None:
    """Images a second, the mean over runs of all images by all seconds; `kind` is train or eval.

    runs: the tasks of each run, as in results.json. None where one does not say how many images, or seconds.
    """
    rates: list[float | None] = []
    for tasks in runs:
        images: list[Any] = [task.get(f"{kind}_images") for task in tasks]
        seconds: list[Any] = [task.get(f"{kind}_seconds") for task in tasks]
        known = None not in images and None not in seconds and sum(seconds) > 0
        rates.append(sum(images) / sum(seconds) if known else None)
    found = mean_std(rates)
    return found and found[0]
