"""Rare classes, held-out images, and probabilities that can be believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptcl.config.schema import DataConfig
from promptcl.data.inputs import labelled
from promptcl.data.splits import load_split
from promptcl.learner.calibration import Calibration, hold_out, measure


def test_temperature_makes_probabilities_true() -> None:
    """Logits five times too sure: the temperature undoes it, and the threshold lets 95 % of the right ones pass."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((4000, 5), generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    found = measure(5 * logits, labels)
    assert found.temperature == pytest.approx(5, rel=0.1)
    assert found.threshold is not None
    best = (5 * logits / found.temperature).softmax(1).max(1)
    right = best.indices == labels
    assert right.float().mean().item() == pytest.approx(best.values.mean().item(), abs=0.02)
    assert found.threshold is not None
    assert (best.values[right] < found.threshold).float().mean().item() == pytest.approx(0.05, abs=0.002)


def test_few_images_do_not_make_it_certain() -> None:
    found = measure(torch.eye(3), torch.arange(3))
    assert (torch.eye(3) / found.temperature).softmax(1).max() == pytest.approx(0.8, abs=0.01)
    assert measure(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)) == Calibration()
    assert measure(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)) == Calibration()
    joined = Calibration(temperature=4, threshold=0.2, images=10).joined(
        Calibration(temperature=1, threshold=0.5, images=10)
    )
    assert [joined.temperature, joined.threshold] == pytest.approx([2, 0.35])
    assert joined.images == 20
    assert Calibration().joined(Calibration()) == Calibration()


def test_the_threshold_is_one_of_familiarity_and_needs_twenty_right_answers() -> None:
    """Answers that are all equally sure: only familiarity tells them apart."""
    labels = torch.arange(40) % 2
    familiarity = torch.arange(40) / 10
    found = measure(torch.eye(2)[labels], labels, familiarity)
    assert found.threshold == pytest.approx(0.1)  # one of the forty right answers, 0.0, is less familiar
    for right, threshold in ((19, None), (20, 0.0)):
        wrong = torch.where(torch.arange(40) < right, labels, 1 - labels)
        assert measure(torch.eye(2)[labels], wrong, familiarity).threshold == threshold


def test_one_threshold_stands_where_the_other_part_was_too_small() -> None:
    small, large = Calibration(images=10), Calibration(threshold=1.5, images=30)
    assert small.joined(large).threshold == large.joined(small).threshold == 1.5
    assert small.joined(small).threshold is None


def test_hold_out_takes_of_every_class_that_can_spare_one() -> None:
    images = load_split(DataConfig(name="mnist5k")).train
    rows = [*np.flatnonzero(images.labels == 0)[:50], *np.flatnonzero(images.labels == 1)[:3]]
    images = images.select([*rows, *np.flatnonzero(images.labels == 2)[:2]])
    kept, held = hold_out(images, 0.2, torch.Generator().manual_seed(0))
    assert np.bincount(held.labels, minlength=3)[:3].tolist() == [10, 1, 0]
    assert len(kept) + len(held) == len(images)


def test_something_is_left_to_train_on() -> None:
    images = labelled([np.zeros((8, 8, 3), np.uint8)] * 7, ["a"] * 3 + ["b"] * 4)
    kept, held = hold_out(images, 0.9, torch.Generator())
    assert [np.bincount(part.labels).tolist() for part in (kept, held)] == [[1, 1], [2, 3]]
