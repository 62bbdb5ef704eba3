"""Numbers behind the figures, by hand."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from promptcl.reports.drawing import Bar, apart
from promptcl.reports.figures import against_seconds
from promptcl.reports.report import entropy
from promptcl.reports.results import Schedule


def test_texts_that_stand_beside_lines_keep_apart() -> None:
    values = [50.0, 10.0, 10.5, 11.0, 49.0]
    places = apart(values, 5.0)
    assert np.diff(sorted(places)).min() >= 5 - 1e-9
    assert np.argsort(places).tolist() == np.argsort(values).tolist()
    assert np.mean(places) == pytest.approx(np.mean(values))
    assert apart([1.0, 99.0], 5.0) == [1.0, 99.0]


def test_probability_of_drawn_classes_by_hand() -> None:
    schedule = Schedule(steps=2, sigma=4.0, peaks=[2, 5, 8], expected_classes=[1, 1], included=[[0], [0, 1]])
    drawn = schedule.drawn()
    assert drawn[1, 0] == 1.0  # e = 1, s = 2: at the peak of class 0
    assert drawn[1, 1] == pytest.approx(np.exp(-9 / 32))
    assert np.isnan(drawn[1, 2])


def test_entropy_is_log2_of_the_prompts_that_share_evenly() -> None:
    shares = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [np.nan] * 4])
    np.testing.assert_allclose(entropy(shares), [0, 1, 2, np.nan])


def test_names_beside_points_lie_on_no_other() -> None:
    """Thirty methods of nearly the same accuracy and time."""
    rows = [Bar(f"a method {i}", 70 + 0.05 * i, "", i) for i in range(30)]
    seconds = [100.0 + i for i in range(30)]
    drawn = against_seconds("all", "All", "All of them.", rows, seconds)
    places = [float(y) for y in re.findall(r' y="([\d.]+)"[^>]*>a method \d+</text>', drawn.svg)]
    assert len(places) == 30
    gaps = [right - left for left, right in itertools.pairwise(sorted(places))]
    assert min(gaps) > 5  # of letters of 7 points
