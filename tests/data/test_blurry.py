"""Tasks that run into one another: every image once, shares as asked for, a function of the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from promptcl.config import Config
from promptcl.data import ArraySource, ImageSet, Split, Stream
from promptcl.data.blurry import blurry_stream, cut, within


def split_of(classes: int, per_class: int) -> Split:
    """Images whose pixels tell their class and their number in it."""
    labels = np.repeat(np.arange(classes), per_class)
    pixels = np.stack([labels, np.tile(np.arange(per_class), classes)], 1).astype(np.uint8)
    images = ImageSet(ArraySource(pixels[:, None, :], "array"), [f"class {k}" for k in range(classes)], labels)
    return Split(images, images)


def stream(split: Split, tasks: int, seed: int = 3, batch_size: int = 8, **blurry: Any) -> Stream:
    settings = {"scenario": "blurry", "tasks": tasks, "seed": seed, "train": {"batch_size": batch_size, "epochs": 1}}
    return blurry_stream(split, split.train.classes, Config.model_validate({**settings, "blurry": blurry}))


def come(found: Stream) -> list[str]:
    """The images in the order in which they come."""
    return [task.train.name(i) for task in found.tasks for i in range(len(task.train))]


def test_places_are_cut_uniformly_or_evenly() -> None:
    assert cut(7, 3, None) == [3, 2, 2]
    assert cut(2, 3, None) == [1, 1, 0]
    generator = torch.Generator().manual_seed(0)
    drawn = np.array([cut(2, 2, generator) for _ in range(3000)])
    assert (drawn.sum(1) == 2).all()
    assert np.bincount(drawn[:, 0]) / 3000 == pytest.approx([1 / 3] * 3, abs=0.03)
    assert cut(5, 1, generator) == [5]


def test_what_finds_no_room_goes_where_there_is_some() -> None:
    assert within([5, 1, 0], [2, 3, 4]) == [2, 3, 1]
    assert within([1, 1], [3, 3]) == [1, 1]
    assert within([0, 9], [9, 0]) == [9, 0]


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_every_image_comes_exactly_once_in_equal_micro_tasks(stochastic: bool, seed: int) -> None:
    split = split_of(11, 13)
    found = stream(split, 4, seed, steps=2, blur=0.4, stochastic=stochastic, evaluate_every=3)
    assert sorted(come(found)) == sorted(split.train.name(i) for i in range(143))
    assert [len(task.train) for task in found.tasks] == [16] * 8 + [15]
    assert (found.one_test, found.evaluate_every, found.online) == (True, 3, False)
    for task in found.tasks:
        assert task.test is split.test
        assert len(set(task.train.labels.tolist())) == len(task.classes)
        for i, label in enumerate(task.train.labels):
            assert task.classes[label] == f"class {int(task.train.image(i)[0, 0, 0])}"


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_disjoint_classes_stay_and_a_share_of_the_others_is_dealt_out(stochastic: bool, seed: int) -> None:
    split = split_of(20, 10)
    found = stream(split, 5, seed, disjoint=0.5, blur=0.3, stochastic=stochastic).schedule
    assert found is not None
    images, task, blurry = np.array(found["images"]), np.array(found["task_of_class"]), found["blurry"]
    assert len(blurry) == 10
    assert (images.sum(0) == 10).all()
    away = 10 - images[task, np.arange(20)]
    assert (np.delete(away, blurry) == 0).all()
    assert 0 < away.sum() <= 30  # 0.3 * 100 are taken out, and some come back to where they were
    # A task gets as many images as it gave.
    kept = [10 * int(sum(task[k] == t for k in blurry)) for t in range(5)]
    assert images[:, blurry].sum(1).tolist() == kept
    if not stochastic:
        assert np.bincount(np.delete(task, blurry)).tolist() == [2] * 5
        assert np.bincount(task[blurry]).tolist() == [2] * 5
        assert all(away[[k for k in blurry if task[k] == t]].sum() <= 6 for t in range(5))


def test_four_classes_in_two_tasks_by_hand() -> None:
    """One disjoint and one blurry class a task; each blurry class gives 2 of its 8 images: 0, 1 or 2 are exchanged."""
    split, exchanged = split_of(4, 8), []
    for seed in range(300):
        found = stream(split, 2, seed, disjoint=0.5, blur=0.25, stochastic=False).schedule
        assert found is not None
        images, task, (a, b) = np.array(found["images"]), found["task_of_class"], found["blurry"]
        assert sorted([task[a], task[b]]) == [0, 1]
        assert images.sum(1).tolist() == [16, 16]
        assert images[task[a], b] == images[task[b], a] == 8 - images[task[a], a]
        exchanged.append(int(images[task[a], b]))
    # Of four images in a random order, those in the two places of the other class: 2, 1, 0 in 1, 4, 1 of 6 cases.
    assert np.bincount(exchanged) / 300 == pytest.approx(np.array([1, 4, 1]) / 6, abs=0.08)


def test_without_blur_tasks_come_one_after_the_other() -> None:
    split = split_of(10, 6)
    found = stream(split, 5, disjoint=1.0, stochastic=False, batch_size=4)
    assert found.schedule is not None
    place = {f"class {k}": t for k, t in enumerate(found.schedule["task_of_class"])}
    came = [place[task.classes[label]] for task in found.tasks for label in task.train.labels]
    assert came == sorted(came) == [t for t in range(5) for _ in range(12)]
    assert found.schedule["blurry"] == []
    mixed = {classes for task in found.tasks if len(classes := tuple(sorted(map(place.get, task.classes)))) > 1}  # type: ignore[type-var]
    assert mixed


def test_all_blur_is_no_task_at_all() -> None:
    found = stream(split_of(4, 100), 2, disjoint=0.0, blur=1.0, stochastic=False).schedule
    assert found is not None
    assert np.array(found["images"]).ravel().tolist() == pytest.approx([50] * 8, abs=20)


def test_stochastic_tasks_have_different_numbers_of_classes() -> None:
    counts = []
    for seed in range(30):
        found = stream(split_of(20, 2), 5, seed).schedule
        assert found is not None
        task = np.delete(found["task_of_class"], found["blurry"])
        counts.append(np.bincount(task, minlength=5).tolist())
    assert all(sum(row) == 10 for row in counts)
    assert len({tuple(row) for row in counts}) > 20
    assert np.mean(counts) == 2
    assert min(map(min, counts)) == 0  # a task may have none
    assert np.std(np.array(counts), 0).min() > 1


def test_the_stream_is_a_function_of_the_seed() -> None:
    split = split_of(10, 8)
    torch.manual_seed(1)
    first = come(stream(split, 5, 1))
    torch.manual_seed(2)
    assert come(stream(split, 5, 1)) == first
    assert come(stream(split, 5, 2)) != first
    assert come(stream(split, 5, 1, blur=0.5)) != first
    # How large micro-tasks are changes no image's place.
    assert come(stream(split, 5, 1, steps=3, batch_size=2)) == first
