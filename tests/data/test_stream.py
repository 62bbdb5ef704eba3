from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptcl.data.images import ArraySource, ImageSet
from promptcl.data.splits import Split
from promptcl.data.stream import class_incremental, ordered_classes
from promptcl.errors import UserError


def split_of(classes: int, per_class: int = 3) -> Split:
    """Images whose pixels tell their class."""
    labels = np.tile(np.arange(classes), per_class)
    images = np.repeat(labels.astype(np.uint8), 4).reshape(-1, 2, 2)
    names = [f"class {k:03}" for k in range(classes)]
    images_set = ImageSet(ArraySource(images, "array"), names, labels)
    return Split(images_set, images_set.select(np.arange(classes)))


def test_groups_are_consecutive_and_nearly_equal() -> None:
    stream = class_incremental(split_of(7), tasks=3)
    assert [task.name for task in stream] == ["task 1", "task 2", "task 3"]
    assert [len(task.classes) for task in stream] == [3, 2, 2]
    assert sum((task.classes for task in stream), ()) == split_of(7).train.classes


def test_images_keep_their_class() -> None:
    for task in class_incremental(split_of(10), tasks=4, class_order="shuffled", seed=3):
        assert len(task.train) == 3 * len(task.classes)
        assert len(task.test) == len(task.classes)
        for images in (task.train, task.test):
            assert images.classes == task.classes
            for i, label in enumerate(images.labels):
                assert task.classes[label] == f"class {int(images.image(i)[0, 0, 0]):03}"


def test_shuffled_order_is_that_of_the_field() -> None:
    """Seed 1993: the CIFAR-100 class order published with iCaRL's successors begins 68, 56, 78, 8, 23."""
    first = class_incremental(split_of(100), 10, "shuffled", 1993)[0].classes
    assert first[:5] == ("class 068", "class 056", "class 078", "class 008", "class 023")


def test_seed_decides_the_shuffled_order_and_only_that() -> None:
    def order(class_order: str, seed: int) -> list[tuple[str, ...]]:
        chosen = "shuffled" if class_order == "shuffled" else "official"
        return [task.classes for task in class_incremental(split_of(20), 4, chosen, seed)]  # type: ignore[arg-type]

    assert order("shuffled", 1) == order("shuffled", 1)
    assert order("shuffled", 1) != order("shuffled", 2)
    assert order("official", 1) == order("official", 2)
    assert order("shuffled", 2**40)  # larger than numpy's own limit


@given(classes=st.integers(1, 30), tasks=st.integers(1, 30), seed=st.integers(0, 2**33))
def test_every_class_comes_exactly_once(classes: int, tasks: int, seed: int) -> None:
    split = split_of(classes, 1)
    if tasks > classes:
        with pytest.raises(UserError, match=f"tasks={tasks} but the data has {classes} classes"):
            class_incremental(split, tasks, "shuffled", seed)
        return
    stream = class_incremental(split, tasks, "shuffled", seed)
    assert sorted(sum((task.classes for task in stream), ())) == sorted(split.train.classes)
    sizes = [len(task.classes) for task in stream]
    assert max(sizes) - min(sizes) <= 1


def test_unequal_tasks() -> None:
    """A first task of half of the classes, as PyCIL's B50 protocols have it."""
    stream = class_incremental(split_of(100, 1), [50, *[10] * 5], "shuffled", 1993)
    assert [len(task.classes) for task in stream] == [50, 10, 10, 10, 10, 10]
    assert stream[0].classes[:2] == ("class 068", "class 056")
    assert sum((task.classes for task in stream), ()) == ordered_classes(
        split_of(100, 1).train.classes, "shuffled", 1993
    )
    for sizes, write in (([50, 10], "tasks=[90,10]"), ([5, 60], "tasks=[40,60]"), ([101], "tasks=[100]")):
        with pytest.raises(UserError) as caught:
            class_incremental(split_of(100, 1), sizes)
        assert f"are {sum(sizes)} classes but the data has 100" in str(caught.value)
        assert write in str(caught.value)
