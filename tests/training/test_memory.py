"""The rehearsal memory: balanced, uniform, reproducible; and the mask of each row."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from promptcl.data.images import ArraySource, ImageSet, concat
from promptcl.runtime.seeding import task_generator
from promptcl.training.memory import Memory


def digits(name: str, classes: list[str], per_class: int) -> ImageSet:
    labels = np.tile(np.arange(len(classes)), per_class)
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    pixels[:, 1, 1] = zlib.crc32(name.encode()) % 256  # no two sets have the same images
    return ImageSet(ArraySource(pixels, name), classes, labels)


def held(memory: Memory) -> list[tuple[str, str]]:
    assert memory.images is not None
    return [(memory.images.classes[k], memory.images.name(i)) for i, k in enumerate(memory.images.labels)]


def test_n_of_each_class_and_images_that_stay_what_they_were() -> None:
    memory = Memory(3)
    first, second = digits("first", ["a", "b"], 10), digits("second", ["c"], 10)
    memory.add(first, task_generator(0, 0, "memory"))
    before = held(memory)
    memory.add(second, task_generator(0, 1, "memory"))
    assert sorted(name for name, _ in held(memory)) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert set(before) < set(held(memory))
    assert memory.images is not None
    for i in range(len(memory)):
        source, row = memory.images.name(i).rstrip("]").split("[")
        assert int(memory.images.image(i)[0, 0, 0]) == int(row)
        assert (source == "second") == (memory.images.classes[memory.images.labels[i]] == "c")


def test_reproducible_by_seed_and_task() -> None:
    def fill(seed: int) -> list[tuple[str, str]]:
        memory = Memory(2)
        for task in range(3):
            memory.add(digits(f"task {task}", ["a", "b"], 20), task_generator(seed, task, "memory"))
        return held(memory)

    assert fill(1) == fill(1)
    assert fill(1) != fill(2)


def test_classes_that_come_again_are_sampled_uniformly_over_all_tasks() -> None:
    shares = np.zeros(3)
    for seed in range(150):
        memory = Memory(4)
        for task in range(3):
            memory.add(digits(f"{task}", ["a"], 10), task_generator(seed, task, "memory"))
        for _, name in held(memory):
            shares[int(name[0])] += 1
    assert shares.sum() == 600
    assert shares / 600 == pytest.approx(np.full(3, 1 / 3), abs=0.07)


def test_an_image_is_held_once() -> None:
    memory, images = Memory(50), digits("set", ["a", "b"], 5)
    for task in range(3):
        memory.add(images.select([0, 1, 2, 3, 4 + task]), task_generator(0, task, "memory"))
    names = [name for _, name in held(memory)]
    assert sorted(names) == [f"set[{i}]" for i in range(7)]


@pytest.mark.parametrize("memory", [Memory(4), Memory(0, 8, "reservoir"), Memory(0, 8, "greedy")])
def test_an_image_that_comes_twice_at_once_is_held_once(memory: Memory) -> None:
    images = digits("set", ["a", "b"], 5)
    memory.add(images + images, task_generator(0, 0, "memory"))
    names = [name for _, name in held(memory)]
    assert len(names) == len(set(names)) == 8


def test_a_memory_larger_than_the_data_holds_them_all() -> None:
    memory = Memory(1000)
    memory.add(digits("set", ["a", "b"], 5), task_generator(0, 0, "memory"))
    assert len(memory) == 10


def test_joining_sets_again_and_again_builds_no_tower() -> None:
    whole = digits("0", ["a"], 3)
    for task in range(1, 60):
        whole = concat([whole, digits(f"{task}", ["a", f"b{task}"], 2)]).select(range(3))
    assert whole.name(0) == "0[0]"
    merged = concat([whole, digits("x", ["z", "a"], 1)])
    assert merged.classes[:1] == ("a",)
    assert merged.classes[merged.labels[-1]] == "a"
    assert merged.classes[merged.labels[-2]] == "z"
    assert torch.equal(merged.image(4), digits("x", ["z", "a"], 1).image(1))


def test_an_image_is_known_by_class_and_content_and_not_by_its_name() -> None:
    """Arrays have no names, and an inbox is emptied and filled again."""
    memory = Memory(50)
    memory.add(digits("set", ["a", "b"], 3), task_generator(0, 0, "memory"))
    memory.add(digits("set", ["b", "a"], 3), task_generator(0, 1, "memory"))  # the same images, labelled otherwise
    assert len(memory) == 12
    other = digits("set", ["a", "b"], 3)
    changed = ArraySource(np.full((6, 2, 2), 77, dtype=np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None], "set")
    memory.add(ImageSet(changed, other.classes, other.labels), task_generator(0, 2, "memory"))
    assert len(memory) == 18


def rows_of(width: int) -> Callable[[ImageSet], dict[str, torch.Tensor]]:
    """Keeps the first pixel of an image, `width` times."""
    return lambda images: {
        "rows": torch.stack([images.image(i)[0, 0, 0].float().expand(width) for i in range(len(images))]),
    }


def test_what_is_kept_beside_images_stays_beside_them_and_is_filled_up_with_nan() -> None:
    memory = Memory(3)
    memory.add(digits("first", ["a", "b"], 3), task_generator(0, 0, "memory"))
    memory.keep(rows_of(2))
    memory.keep(rows_of(5))  # nothing has come since
    assert memory.kept["rows"].shape == (6, 2)
    memory.add(digits("second", ["a", "c"], 6), task_generator(0, 1, "memory"))
    assert len(memory) == 9
    assert memory.images is not None
    fresh = [memory.images.name(i).startswith("second") for i in range(9)]
    assert any(fresh)
    assert not all(fresh)
    assert memory.kept["rows"].isnan().all(1).tolist() == fresh
    memory.keep(rows_of(4))
    assert memory.kept["rows"].shape == (9, 4)
    for i, row in enumerate(memory.kept["rows"]):
        width = 4 if fresh[i] else 2
        assert row[:width].tolist() == [float(memory.images.image(i)[0, 0, 0])] * width
        assert row[width:].isnan().all()


def test_a_name_that_is_new_is_nan_for_what_was_there() -> None:
    memory = Memory(2)
    memory.add(digits("first", ["a"], 2), task_generator(0, 0, "memory"))
    memory.keep(lambda images: {})
    memory.add(digits("second", ["b"], 2), task_generator(0, 1, "memory"))
    memory.keep(rows_of(1))
    assert memory.kept["rows"].isnan().flatten().tolist() == [True, True, False, False]


@pytest.mark.parametrize("images", [True, False])
def test_what_is_kept_is_stored_with_images_and_without(images: bool) -> None:
    def filled() -> Memory:
        memory = Memory(2)
        memory.add(digits("first", ["a"], 5), task_generator(0, 0, "memory"))
        return memory

    memory = filled()
    memory.keep(rows_of(3))
    stored = {name: value.clone() for name, value in memory.tensors(["a"], images).items()}
    again = Memory(2)
    again.restore(stored, ["a"], 10)
    if not images:  # the images come from elsewhere, again
        again.add(digits("first", ["a"], 5), task_generator(0, 0, "memory"))
        again.settle()
    assert torch.equal(again.kept["rows"], memory.kept["rows"])
    again.keep(rows_of(9))  # nothing is new
    assert again.kept["rows"].shape == (2, 3)
