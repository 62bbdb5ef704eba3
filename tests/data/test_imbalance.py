"""A long tail of the training images, in every scenario, by the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from promptcl.config import Config
from promptcl.data import ArraySource, Domain, ImageSet, make_stream
from promptcl.data.imbalance import kept, long_tailed

NAMES = [f"class {k:02}" for k in range(10)]
COUNTS = [kept(40, place, 10, 20.0) for place in range(10)]


def images(names: list[str], each: int, first: int = 0) -> ImageSet:
    pixels = np.full((each * len(names), 2, 2), first, dtype=np.uint8)
    return ImageSet(ArraySource(pixels, f"array{first}"), names, np.tile(np.arange(len(names)), each))


ONE = [Domain("one", images(NAMES, 40), images(NAMES, 3))]
TWO = [Domain(f"domain {d}", images(NAMES, 40, d), images(NAMES, 3, 9)) for d in range(2)]


def config(**changes: Any) -> Config:
    data = {"imbalance": 20.0, **changes.pop("data", {})}
    return Config.model_validate({"tasks": 5, "data": data, "train": {"epochs": 1, "batch_size": 8}, **changes})


def counts(found: ImageSet) -> dict[str, int]:
    return dict(zip(found.classes, np.bincount(found.labels, minlength=len(found.classes)).tolist(), strict=True))


def test_the_sizes_of_cifar_lt() -> None:
    """The numbers of images that papers state for CIFAR-100-LT and CIFAR-10-LT at factor 100."""
    assert sum(kept(500, place, 100, 100.0) for place in range(100)) == 10847
    assert sum(kept(5000, place, 10, 100.0) for place in range(10)) == 12406
    assert [kept(500, 0, 100, 100.0), kept(500, 99, 100, 100.0)] == [500, 5]
    assert [kept(7, place, 10, 1.0) for place in range(10)] == [7] * 10
    assert kept(3, 9, 10, 100.0) == 1
    assert kept(8, 0, 1, 100.0) == 8


def test_the_first_images_of_each_class_are_kept_by_the_seed() -> None:
    found = long_tailed(ONE, config(seed=1))[0]
    assert sorted(counts(found.train).values(), reverse=True) == COUNTS
    assert found.test is ONE[0].test
    for k, most in enumerate(counts(found.train).values()):
        of_class = [found.train.name(int(i)) for i in np.flatnonzero(found.train.labels == k)]
        assert of_class == [ONE[0].train.name(10 * i + k) for i in range(most)]
    assert counts(long_tailed(ONE, config(seed=1))[0].train) == counts(found.train)
    assert counts(long_tailed(ONE, config(seed=2))[0].train) != counts(found.train)


@pytest.mark.parametrize("order", ["official", "shuffled"])
def test_ordered_falls_in_the_order_of_learning(order: str) -> None:
    stream = make_stream(ONE, config(data={"imbalance_order": "ordered", "class_order": order}, seed=5))
    learned = [size for task in stream.tasks for size in counts(task.train).values()]
    assert learned == COUNTS
    assert (stream.tasks[0].classes == tuple(NAMES[:2])) == (order == "official")
    assert all(set(counts(task.test).values()) == {3} for task in stream.tests)


def test_every_scenario_has_its_long_tail() -> None:
    total = sum(COUNTS)
    assert sum(len(task.train) for task in make_stream(ONE, config()).tasks) == total
    assert sum(len(task.train) for task in make_stream(ONE, config(scenario="blurry")).tasks) == total
    assert len(make_stream(ONE, config(joint=True)).tasks[0].train) == total
    gaussian = {"micro_tasks": 6, "steps": 4, "sigma": 9.0}
    assert len(make_stream(ONE, config(scenario="gaussian", gaussian=gaussian)).everything.train) == total
    domains = make_stream(TWO, config(scenario="domain", data={"class_order": "official"})).tasks
    assert [len(task.train) for task in domains] == [total] * 2
    assert counts(domains[0].train) == counts(domains[1].train)
