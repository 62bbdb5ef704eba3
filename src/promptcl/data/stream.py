"""Tasks and streams of tasks, and the functions that cut data into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np

from promptcl.config.schema import WITHOUT_BOUNDARIES
from promptcl.data.images import ImageSet, concat
from promptcl.data.splits import Domain, Split
from promptcl.errors import UserError

Order = Literal["official", "shuffled"]


@dataclass(frozen=True)
class Scenario:
    """What a learner has to know about the streams of a scenario."""

    boundaries: bool
    """Whether it is ever said where a task ends."""
    masked: bool
    """Whether classes outside a task may be left out of its loss: not where every task has all classes."""


SCENARIOS = {
    name: Scenario(name not in WITHOUT_BOUNDARIES, masked=name != "domain")
    for name in ("class", "domain", *WITHOUT_BOUNDARIES)
}
"""By `Config.scenario`."""


@dataclass(frozen=True)
class Task:
    """Images that arrive together and the test set that belongs to them.

    `classes` are the classes of `train`, in the order that its labels count; the test set has its own list.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Stream:
    """Tasks in the order they are learned, the test sets to evaluate on, and what a learner may know of both."""

    tasks: list[Task]
    """What is learned, one after the other."""
    tests: list[Task]
    """Tasks whose test sets are evaluated, one column of the accuracy matrix each: one where all share it."""
    everything: Task
    """All training images as one task."""
    one_test: bool = False
    """All tasks share one test set, which has classes that are still to come; else each task has its own."""
    joint: bool = False
    """`tasks` is `everything` alone, learned at once, while `tests` are those of the separate tasks."""
    evaluate_every: int = 1
    """Tasks between two evaluations; one follows the last task in any case."""
    schedule: dict[str, Any] | None = None
    """Which classes come when, where no task ends, for the report."""
    online: bool = False
    """Accuracy is measured on the images of each task before they are learned too."""

    @property
    def compared(self) -> bool:
        """Whether old tasks are tested again after new ones, without which forgetting has no meaning."""
        return not (self.one_test or self.joint)

    @property
    def unknown_rows(self) -> int:
        """Rows of the accuracy matrix before the first one that is measured: joint learning has the last row only."""
        return len(self.tests) - 1 if self.joint else 0

    def tests_after(self, task: int) -> list[Task]:
        """The tasks on whose test sets to evaluate once task number `task` (from 0) is learned."""
        return self.tests[: task + 1] if self.compared else self.tests


def micro_task(number: int, images: ImageSet, order: Sequence[str], test: ImageSet) -> Task:
    """Some of the images of a stream that has no tasks, with those classes of `order` that they are of."""
    classes = tuple(order[k] for k in np.unique(images.labels))
    return Task(f"micro-task {number + 1}", classes, images.of_classes(classes), test)


def ordered_classes(names: Sequence[str], order: Order, seed: int) -> tuple[str, ...]:
    """Class names in the order they are learned: `names` as they are, or shuffled by `seed`.

    `shuffled` uses numpy's legacy permutation of `seed`: frozen across numpy versions, and the usual order of this
    field (seed 1993 gives the order of iCaRL and its successors).
    """
    if order == "official":
        return tuple(names)
    return tuple(names[k] for k in np.random.RandomState(seed % 2**32).permutation(len(names)))


def class_incremental(
    split: Split, tasks: int | Sequence[int], class_order: Order = "official", seed: int = 0
) -> list[Task]:
    """Cut the classes into consecutive groups: `tasks` of them, as equal as they can be (the first ones get the
    remainder), or of so many classes each.

    Raises UserError: too few classes, or sizes that do not add up to the number of classes.
    """
    names = ordered_classes(split.train.classes, class_order, seed)
    starts = [0, *accumulate(_sizes(tasks, len(names)))]
    groups = [names[a:b] for a, b in pairwise(starts)]
    return [
        Task(f"task {number}", group, split.train.of_classes(group), split.test.of_classes(group))
        for number, group in enumerate(groups, start=1)
    ]


def _sizes(tasks: int | Sequence[int], classes: int) -> list[int]:
    """The number of classes of each task. Raises UserError as `class_incremental` does."""
    if isinstance(tasks, int):
        if tasks > classes:
            raise UserError(f"tasks={tasks} but the data has {classes} classes; write tasks={classes} or fewer")
        size, larger = divmod(classes, tasks)
        return [size + (t < larger) for t in range(tasks)]
    sizes = list(tasks)
    if sum(sizes) != classes or min(sizes) < 1:
        given = ",".join(map(str, sizes))
        # What a first task that is larger leaves, as the others are given.
        rest = max(1, sizes[-1])
        first = classes - rest * (len(sizes) - 1)
        like = [first, *[rest] * (len(sizes) - 1)] if first > 0 else _sizes(min(2, classes), classes)
        raise UserError(
            f"tasks=[{given}] are {sum(sizes)} classes but the data has {classes}; write numbers that add up to that, "
            f"such as tasks=[{','.join(map(str, like))}]"
        )
    return sizes


def domain_incremental(domains: Sequence[Domain], common: bool) -> list[Task]:
    """Make each domain a task, all with the same classes; `common`: the test sets of all domains are joined into one.

    A domain without training images (possible with a common test set) adds its test images only.
    Raises UserError: a single domain, domains whose classes differ.
    """
    learned = [domain for domain in domains if len(domain.train)]
    if len(learned) < 2:
        raise UserError(
            f"scenario=domain needs at least two domains to learn but the data has {len(learned)}; "
            "write e.g. data.name=domains data.root=FOLDER"
        )
    first = learned[0]
    for domain in learned[1:]:
        if odd := sorted(set(first.train.classes) ^ set(domain.train.classes)):
            raise UserError(
                f"scenario=domain needs the same classes in every domain but '{odd[0]}' is in one of "
                f"'{first.name}' and '{domain.name}' only; name the classes alike, or write scenario=class"
            )
    distinct = {id(domain.test): domain.test for domain in domains if len(domain.test)}
    test = concat(list(distinct.values())) if common else None
    if test is not None and (odd := sorted(set(test.classes) - set(first.train.classes))):
        raise UserError(f"class '{odd[0]}' is in the common test set but never learned; remove its test images")
    return [Task(one.name, first.train.classes, one.train, one.test if test is None else test) for one in learned]
