"""Tasks, and the pure functions that cut data into a stream of them. K classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from promptcl.data.images import ImageSet, concat
from promptcl.data.splits import Domain, Split
from promptcl.errors import UserError

Order = Literal["official", "shuffled"]


@dataclass(frozen=True)
class Task:
    """Images that arrive together; the labels of `train` and `test` are indices into `classes`."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Stream:
    """Tasks in order, and how they are to be tested."""

    tasks: list[Task]
    everything: Task
    """All at once, for joint training."""
    one_test: bool = False
    """All tasks share one test set, which is met after every one of them; else each has its own."""
    evaluate_every: int = 1
    schedule: dict[str, Any] | None = None
    """The Gaussian schedule, for the report."""


def ordered_classes(names: Sequence[str], order: Order, seed: int) -> tuple[str, ...]:
    """`names`, or their permutation by `seed`.

    `shuffled` uses numpy's legacy permutation of `seed`: frozen across numpy versions, and the usual order of this
    field (seed 1993 gives the order of iCaRL and its successors).
    """
    if order == "official":
        return tuple(names)
    return tuple(names[k] for k in np.random.RandomState(seed % 2**32).permutation(len(names)))


def class_incremental(split: Split, tasks: int, class_order: Order = "official", seed: int = 0) -> list[Task]:
    """Cut the classes into `tasks` consecutive groups, as equal as they can be (the first ones get the remainder).

    Raises UserError when there are too few classes.
    """
    names = ordered_classes(split.train.classes, class_order, seed)
    if tasks > len(names):
        raise UserError(f"tasks={tasks} but the data has {len(names)} classes; write tasks={len(names)} or fewer")
    size, larger = divmod(len(names), tasks)
    starts = [t * size + min(t, larger) for t in range(tasks + 1)]
    groups = [names[a:b] for a, b in pairwise(starts)]
    return [
        Task(f"task {number}", group, split.train.of_classes(group), split.test.of_classes(group))
        for number, group in enumerate(groups, start=1)
    ]


def domain_incremental(parts: Sequence[Domain], common: bool) -> list[Task]:
    """Each part a task, all with the same classes; `common`: the test sets of all parts are joined into one.

    A part without training images (possible with a common test set) adds its test images only.
    Raises UserError: a single domain, domains whose classes differ.
    """
    learned = [part for part in parts if len(part.train)]
    if len(learned) < 2:
        raise UserError(
            f"scenario=domain needs at least two domains to learn but the data has {len(learned)}; "
            "write e.g. data.name=domains data.root=FOLDER"
        )
    first = learned[0]
    for part in learned[1:]:
        if odd := sorted(set(first.train.classes) ^ set(part.train.classes)):
            raise UserError(
                f"scenario=domain needs the same classes in every domain but '{odd[0]}' is in one of "
                f"'{first.name}' and '{part.name}' only; name the classes alike, or write scenario=class"
            )
    test = concat(list({id(part.test): part.test for part in parts if len(part.test)}.values())) if common else None
    if test is not None and (odd := sorted(set(test.classes) - set(first.train.classes))):
        raise UserError(f"class '{odd[0]}' is in the common test set but never learned; remove its test images")
    return [Task(part.name, first.train.classes, part.train, part.test if test is None else test) for part in learned]
