"""What is counted in answers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from promptcl.reports.answers import Answers, Bin, Pair, expected_error


def answers(threshold: float | None = 1.4) -> Answers:
    """Six images: four of the learned a and b, two of the stranger c, of which the surer one is the less familiar."""
    probabilities = np.array([[0.9, 0.1], [0.45, 0.55], [0.3, 0.7], [0.52, 0.48], [0.95, 0.05], [0.51, 0.49]])
    familiarity = np.array([2.9, 1.3, 2.0, 1.2, 0.5, 1.9], dtype=np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2])
    return Answers("", ["a", "b", "c"], labels, probabilities.astype(np.float32), familiarity, threshold)


def test_counts() -> None:
    found = answers()
    assert found.accuracy == 50
    assert found.confusion().tolist() == [[1, 1], [1, 1], [2, 0]]
    assert found.by_class() == [("a", 1, 1, 2), ("b", 1, 1, 2), ("c", 0, 1, 2)]
    assert found.pairs() == [Pair("a", "b", 1, 2), Pair("b", "a", 1, 2)]


def test_unknown_is_what_lies_below_the_threshold() -> None:
    for never in (None, 0.0):
        shares = [("right answers", 0, 2), ("wrong answers", 0, 2), ("never learned", 0, 2)]
        assert answers(never).shares_unknown() == shares
    assert answers().shares_unknown() == [("right answers", 0, 2), ("wrong answers", 2, 2), ("never learned", 1, 2)]
    assert answers().unknown.tolist() == [False, True, False, True, True, False]


def test_reliability_has_a_step_for_each_tenth_with_images() -> None:
    bins = answers().reliability()
    assert [one.images for one in bins] == [2, 1, 1]
    assert [round(one.probability, 1) for one in bins] == [53.5, 70.0, 90.0]
    assert [one.right for one in bins] == [0, 100, 100]
    assert expected_error([Bin(3, 80, 90), Bin(1, 50, 30)]) == 12.5


def test_certain_answers_are_in_the_last_step() -> None:
    certain = Answers("", ["a"], np.array([0, 0]), np.ones((2, 1), np.float32), np.ones(2, np.float32), None)
    assert certain.reliability() == [Bin(2, 100, 100)]


def test_every_image_is_shown_once_and_room_is_shared() -> None:
    assert answers().shown(4) == {"wrong": [], "passed": [5], "unknown": [4, 3], "unsure": [2]}
    assert answers().shown(24) == {"wrong": [], "passed": [5], "unknown": [4, 3, 1], "unsure": [2, 0]}
    assert answers(None).shown(24) == {"wrong": [1, 3], "passed": [5, 4], "unknown": [], "unsure": [2, 0]}


def test_arrays_that_do_not_fit_are_refused() -> None:
    good = answers()
    for names, labels in ((["a"], [0] * 6), (["a", "b"], [0] * 5), (["a", "b"], [2] * 6), (["a", "b"], [-1] * 6)):
        with pytest.raises(ValueError, match="label"):
            Answers("", names, np.array(labels), good.probabilities, good.familiarity, None)
    with pytest.raises(ValueError, match="familiarity"):
        Answers("", good.names, good.labels, good.probabilities, good.familiarity[1:], None)
