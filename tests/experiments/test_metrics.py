from __future__ import annotations

import pytest

from promptcl.experiments import metrics
from promptcl.experiments.metrics import selection_entropy, speed, task_inference, used_prompts

MATRIX: list[list[float | None]] = [
    [90.0, None, None],
    [70.0, 80.0, None],
    [60.0, 85.0, 95.0],
]


def test_values_by_hand() -> None:
    assert metrics.average_accuracy(MATRIX) == pytest.approx(80.0)
    assert metrics.forgetting(MATRIX) == pytest.approx(((90 - 60) + (80 - 85)) / 2)
    assert metrics.learning_accuracy(MATRIX) == pytest.approx((90 + 80 + 95) / 3)
    assert metrics.average_incremental_accuracy(MATRIX) == pytest.approx((90 + 75 + 80) / 3)


def test_forgetting_takes_the_best_earlier_value() -> None:
    matrix: list[list[float | None]] = [[50.0, None, None], [80.0, 70.0, None], [60.0, 70.0, 90.0]]
    assert metrics.forgetting(matrix) == pytest.approx((20 + 0) / 2)


def test_one_task_has_no_history() -> None:
    assert metrics.forgetting([[50.0]]) is None
    assert metrics.average_accuracy([[50.0]]) == 50.0


def test_a_hole_in_the_matrix_is_an_error() -> None:
    with pytest.raises(ValueError, match="task 0 after task 1"):
        metrics.average_accuracy([[50.0, None], [None, 60.0]])


def test_task_inference() -> None:
    assert task_inference([[3, 1], [2, 4]]) == pytest.approx(70)
    assert task_inference([[0, 0], [0, 0]]) is None


def test_selection_entropy_and_use() -> None:
    assert selection_entropy([5, 5, 0, 5, 5]) == pytest.approx(2.0)
    assert selection_entropy([0, 7]) == 0
    assert selection_entropy([0, 0]) == 0
    assert used_prompts([500, 496, 4, 0]) == 2
    assert used_prompts([0, 0]) == 0


def test_speed_is_all_images_by_all_seconds_in_the_table_and_on_the_page() -> None:
    tasks = [{"train_images": 10, "train_seconds": 8.0}, {"train_images": 30, "train_seconds": 2.0}]
    assert speed([tasks], "train") == 4.0  # and not (1.25 + 15) / 2
    assert speed([tasks, tasks[1:]], "train") == (4 + 15) / 2
    assert speed([tasks], "eval") is None
    assert speed([[{"train_images": 10, "train_seconds": 0.0}]], "train") is None
