"""The Gaussian schedule against the numbers of the specification (3.4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptcl.config.schema import Config
from promptcl.data.gaussian import draw_classes, gaussian_stream, inclusion, peaks
from promptcl.data.images import ArraySource, ImageSet
from promptcl.data.splits import Split
from promptcl.errors import UserError
from promptcl.runtime.seeding import task_generator


def split_of(classes: int, per_class: int) -> Split:
    """Images whose pixels tell their class."""
    labels = np.tile(np.arange(classes), per_class)
    images = ImageSet(
        ArraySource(np.repeat(labels.astype(np.uint8), 4).reshape(-1, 2, 2), "array"),
        [f"class {k}" for k in range(classes)],
        labels,
    )
    return Split(images, images)


def config(batch_size: int = 8, seed: int = 3, **gaussian: object) -> Config:
    return Config.model_validate(
        {"scenario": "gaussian", "seed": seed, "train": {"batch_size": batch_size}, "gaussian": gaussian}
    )


def test_the_schedule_of_the_paper() -> None:
    assert peaks(100, 200, 5) == list(range(5, 1000, 10))
    expected = inclusion(100).sum(1)
    assert expected[100] == pytest.approx(12.5, abs=0.05)
    assert expected[0] == pytest.approx(6.3, abs=0.05)
    assert inclusion(100)[1, 0] == 1.0  # class 0 peaks at batch 5, where micro-task 1 begins
    assert inclusion(100)[11, 0] == pytest.approx(np.exp(-0.5))  # ten micro-tasks are 50 batches: one sigma


def test_the_shipped_schedule_of_the_release() -> None:
    """s = -1: peaks at micro-tasks 1, 3, ..., 199, about 60 classes in the middle and 31 at the ends."""
    probability = inclusion(100, 200, -1, 50.0)
    assert probability.argmax(0).tolist() == list(range(1, 200, 2))
    assert probability.sum(1)[100] == pytest.approx(60, abs=1)
    assert probability.sum(1)[0] == pytest.approx(31, abs=1)


def test_fewer_batches_than_classes_is_an_error() -> None:
    with pytest.raises(UserError, match=r"fewer than the 100 classes; write gaussian.micro_tasks=20 or more"):
        peaks(100, 10, 5)


def test_at_least_one_class_is_drawn_and_the_draws_have_the_probabilities() -> None:
    generator = task_generator(0, 0, "test")
    p = np.array([0.1, 0.7, 0.0])
    drawn = [draw_classes(p, generator) for _ in range(4000)]
    assert all(drawn)
    assert not any(2 in classes for classes in drawn)
    kept = 1 - 0.9 * 0.3  # draws that include nobody are made again
    assert np.mean([0 in classes for classes in drawn]) == pytest.approx(0.1 / kept, abs=0.02)
    assert np.mean([1 in classes for classes in drawn]) == pytest.approx(0.7 / kept, abs=0.02)
    assert draw_classes(np.array([0.0, 1e-300]), generator) == [1]


def test_micro_tasks_hold_what_the_schedule_says() -> None:
    split, settings = split_of(10, 40), config(micro_tasks=20, steps=3, sigma=4.0, evaluate_every=5)
    stream = gaussian_stream(split, split.train.classes, settings)
    assert (len(stream.tasks), stream.one_test, stream.evaluate_every) == (20, True, 5)
    assert stream.schedule is not None
    for task, included in zip(stream.tasks, stream.schedule["included"], strict=True):
        assert set(task.classes) <= {f"class {k}" for k in included}
        assert len(task.train) == min(24, 40 * len(included))
        names = [task.train.name(i) for i in range(len(task.train))]
        assert len(set(names)) == len(names)
        assert all(
            task.classes[label] == f"class {int(task.train.image(i)[0, 0, 0])}"
            for i, label in enumerate(task.train.labels)
        )
        assert task.test is split.test
    early, late = stream.schedule["included"][1], stream.schedule["included"][18]
    assert np.mean(early) < np.mean(late)


def test_the_stream_is_a_function_of_the_seed() -> None:
    split = split_of(10, 20)

    def names(seed: int) -> list[list[str]]:
        stream = gaussian_stream(split, split.train.classes, config(seed=seed, micro_tasks=10, steps=2, sigma=5.0))
        return [[task.train.name(i) for i in range(len(task.train))] for task in stream.tasks]

    torch.manual_seed(1)
    first = names(1)
    torch.manual_seed(2)
    assert names(1) == first
    assert names(2) != first


def test_the_order_of_classes_decides_their_peaks() -> None:
    split = split_of(4, 20)
    order = ("class 3", "class 1", "class 0", "class 2")
    stream = gaussian_stream(split, order, config(micro_tasks=8, steps=5, sigma=1.0))
    assert stream.schedule is not None
    assert stream.schedule["classes"] == list(order)
    assert stream.tasks[1].classes == ("class 3",)
    assert stream.tasks[-1].classes == ("class 2",)


def test_release_schedule_trains_on_all_images_of_its_classes() -> None:
    split = split_of(5, 7)
    stream = gaussian_stream(split, split.train.classes, config(micro_tasks=10, sigma=1.0, release_schedule=True))
    assert stream.schedule is not None
    for task, included in zip(stream.tasks, stream.schedule["included"], strict=True):
        assert len(task.train) == 7 * len(included)
