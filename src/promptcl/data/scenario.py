"""Which stream of tasks a configuration means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promptcl.config.schema import Config
from promptcl.data.gaussian import gaussian_stream
from promptcl.data.splits import Domain, Split, join
from promptcl.data.stream import Stream, Task, class_incremental, domain_incremental, ordered_classes


def make_stream(parts: Sequence[Domain], config: Config) -> Stream:
    """The stream of `config.scenario` over the parts of a data set.

    Raises UserError: data that do not fit the scenario.
    """
    whole, tests = join(parts), {id(part.test) for part in parts}
    order = ordered_classes(whole.train.classes, config.data.class_order, config.seed)
    if config.scenario == "gaussian":
        return gaussian_stream(whole, order, config)
    common = len(parts) > 1 and (config.data.test_set == "common" or len(tests) == 1)
    if config.scenario == "domain":
        return _parts_as_tasks(domain_incremental(parts, common), whole, common, config.tasks == 1)
    disjoint = sum(len(part.train.classes) for part in parts) == len(whole.train.classes)
    if len(parts) > 1 and disjoint:
        tasks = [Task(part.name, part.train.classes, part.train, part.test) for part in parts]
        return _parts_as_tasks(tasks, whole, False, config.tasks == 1)
    tasks = class_incremental(whole, config.tasks, config.data.class_order, config.seed)
    return Stream(tasks, Task("all tasks", order, whole.train.of_classes(order), whole.test))


def _parts_as_tasks(tasks: list[Task], whole: Split, common: bool, at_once: bool) -> Stream:
    everything = Task("all tasks", whole.train.classes, whole.train, whole.test)
    return Stream([everything] if at_once else tasks, everything, common)


@dataclass(frozen=True)
class Scenario:
    """What a learner has to know about the stream that its tasks come from."""

    boundaries: bool
    """Whether it is ever said where a task ends."""
    masked: bool
    """Whether classes outside a task may be left out of its loss: not where every task has all classes."""


SCENARIOS = {"class": Scenario(True, True), "domain": Scenario(True, False), "gaussian": Scenario(False, True)}
