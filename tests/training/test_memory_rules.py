"""Which images a memory of a fixed size keeps: each rule against its definition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from promptcl.data.images import ArraySource, ImageSet
from promptcl.errors import UserError
from promptcl.recipes.load import load_config
from promptcl.runtime.seeding import task_generator
from promptcl.training.memory import Memory, Rule


def task(number: int, **counts: int) -> ImageSet:
    """So many images of each class, no two alike, whatever the task."""
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    pixels = np.zeros((len(labels), 2, 2), dtype=np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1], pixels[:, 1, 0] = (
        number,
        np.arange(len(labels)) % 256,
        np.arange(len(labels)) // 256,
    )
    return ImageSet(ArraySource(pixels, f"task {number}"), list(counts), labels)


def filled(rule: Rule, total: int, *tasks: ImageSet, seed: int = 0) -> Memory:
    memory = Memory(0, total, rule)
    for number, images in enumerate(tasks):
        memory.add(images, task_generator(seed, number, "memory"), number)
    return memory


def of_class(memory: Memory) -> Counter[str]:
    assert memory.images is not None
    return Counter(memory.images.classes[k] for k in memory.images.labels)


def of_task(memory: Memory) -> Counter[str]:
    return Counter(name.partition("[")[0] for name in names(memory))


def names(memory: Memory) -> set[str]:
    assert memory.images is not None
    return {memory.images.name(i) for i in range(len(memory))}


def test_a_total_is_shared_by_the_classes_so_far_and_shrinks() -> None:
    one, two = task(0, a=30, b=30), task(1, c=30)
    assert of_class(filled("class", 10, one)) == {"a": 5, "b": 5}
    both = filled("class", 10, one, two)
    assert of_class(both) == {"a": 4, "b": 3, "c": 3}
    assert {name for name in names(both) if name.startswith("task 0")} < names(filled("class", 10, one))


def test_a_total_is_shared_by_the_tasks_so_far() -> None:
    tasks = task(0, a=30, b=30), task(1, c=5, d=25), task(2, a=40)
    found = filled("task", 12, *tasks)
    assert of_task(found) == {"task 0": 4, "task 1": 4, "task 2": 4}
    assert of_task(filled("task", 13, *tasks[:2])) == {"task 0": 7, "task 1": 6}


def test_a_reservoir_keeps_each_image_of_the_stream_equally_often() -> None:
    seen: Counter[str] = Counter()
    for seed in range(300):
        memory = filled("reservoir", 10, task(0, a=60), task(1, b=30), task(2, a=10), seed=seed)
        assert len(memory) == 10
        seen += of_task(memory)
    shares = np.array([seen[f"task {number}"] for number in range(3)]) / 3000
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.04)


def test_a_reservoir_keeps_each_place_of_ten_thousand_equally_often() -> None:
    """100 of 10,000 arrivals, ten times: chi-square over ten stretches of the stream."""
    stream, places = task(0, a=10_000), list[int]()
    for seed in range(10):
        memory = filled("reservoir", 100, stream, seed=seed)
        assert len(memory) == 100
        places += [int(name.partition("[")[2][:-1]) for name in names(memory)]
    counts = np.bincount(np.array(places) // 1000, minlength=10)
    assert ((counts - 100) ** 2 / 100).sum() < 27.9  # 9 degrees of freedom: 99.9 %


def test_a_reservoir_that_is_offered_what_it_holds_stays() -> None:
    images = task(0, a=8)
    memory = filled("reservoir", 10, images)
    before = names(memory)
    memory.add(images, task_generator(1, 0, "memory"))
    assert names(memory) == before == {f"task 0[{i}]" for i in range(8)}


def test_greedy_is_balanced_whatever_comes() -> None:
    found = filled("greedy", 12, task(0, a=100, b=5), task(1, c=50), task(2, d=2))
    counts = of_class(found)
    assert counts["d"] == 2
    assert sum(counts.values()) == 12
    assert set(counts[name] for name in "abc") <= {3, 4}


def test_greedy_never_replaces_an_image_by_another_of_its_class() -> None:
    before: set[str] = set()
    tasks = [task(number, a=70, **{f"new{number}": 70}) for number in range(4)]
    for number in range(1, 5):  # two to five classes share 60 places
        now = names(filled("greedy", 60, *tasks[:number]))
        if before:  # the class that comes again is full: none of its later images is kept
            assert not {name for name in now - before if int(name.partition("[")[2][:-1]) < 70}
        before = now


def test_greedy_takes_all_while_there_is_room_in_the_quota() -> None:
    assert of_class(filled("greedy", 10, task(0, a=4, b=4))) == {"a": 4, "b": 4}
    assert of_class(filled("greedy", 10, task(0, a=9))) == {"a": 9}
    assert of_class(filled("greedy", 2, task(0, a=9), task(1, b=9), task(2, c=9)))["c"] == 1


@pytest.mark.parametrize("rule", ["class", "task", "reservoir", "greedy"])
def test_what_is_saved_goes_on_as_if_it_had_not_been(rule: Rule) -> None:
    tasks = task(0, a=20, b=20), task(1, c=20), task(2, a=20, d=20)
    whole, part = filled(rule, 15, *tasks), filled(rule, 15, *tasks[:2])
    part.keep(lambda images: {"row": torch.zeros(len(images), 1)})
    again = Memory(0, 15, rule)
    again.restore({k: v.clone() for k, v in part.tensors(["a", "b", "c"], images=True).items()}, ["a", "b", "c"], 10)
    again.add(tasks[2], task_generator(0, 2, "memory"), 2)
    assert again._digests == whole._digests
    assert again.kept["row"].shape == (len(again), 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["memory.per_class=5", "memory.total=50"], "both say how many images are kept"),
        (["memory.rule=reservoir"], "write memory.total=500"),
        (["memory.batch_size=5", "memory.per_class=0"], "not read with memory.per_class=0"),
    ],
)
def test_settings_that_contradict_each_other(settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config("l2p", settings)
    assert load_config("l2p", ["memory.total=50", "memory.rule=greedy", "memory.batch_size=5"]).memory.size == 50
