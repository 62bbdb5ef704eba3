"""Tasks, and the pure functions that cut a data set into a stream of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from promptcl.data import ImageSet, Split
from promptcl.errors import UserError


@dataclass(frozen=True)
class Task:
    """Classes that arrive together; the labels of `train` and `test` are indices into `classes`."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet


def class_incremental(
    split: Split, tasks: int, class_order: Literal["official", "shuffled"] = "official", seed: int = 0
) -> list[Task]:
    """Cut the classes into `tasks` consecutive groups, as equal as they can be (the first ones get the remainder).

    `shuffled` uses numpy's legacy permutation of `seed`: frozen across numpy versions, and the usual order of this
    field (seed 1993 gives the order of iCaRL and its successors). Raises UserError when there are too few classes.
    """
    names = split.train.classes
    if tasks > len(names):
        raise UserError(f"tasks={tasks} but the data has {len(names)} classes; write tasks={len(names)} or fewer")
    order = np.arange(len(names))
    if class_order == "shuffled":
        order = np.random.RandomState(seed % 2**32).permutation(len(names))
    groups = [tuple(names[k] for k in group) for group in np.array_split(order, tasks)]
    return [
        Task(f"task {number}", group, split.train.of_classes(group), split.test.of_classes(group))
        for number, group in enumerate(groups, start=1)
    ]
