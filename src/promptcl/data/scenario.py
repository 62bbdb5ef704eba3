"""Choose the stream of tasks that a configuration means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from promptcl.config import Config
from promptcl.config.messages import show
from promptcl.data.gaussian import gaussian_stream
from promptcl.data.splits import Domain, Split, join
from promptcl.data.stream import Stream, Task, class_incremental, domain_incremental, ordered_classes
from promptcl.errors import UserError


def make_stream(domains: Sequence[Domain], config: Config) -> Stream:
    """The stream of `config.scenario` over the domains of a data set; with `config.joint` all its tasks at once.

    Raises UserError: data that do not fit the scenario.
    """
    stream = _stream(domains, config)
    return replace(stream, tasks=[stream.everything], joint=True) if config.joint else stream


def _stream(domains: Sequence[Domain], config: Config) -> Stream:
    whole = join(domains)
    order = ordered_classes(whole.train.classes, config.data.class_order, config.seed)
    if config.scenario == "gaussian":
        return gaussian_stream(whole, order, config)
    if config.scenario == "domain":
        shared = len({id(domain.test) for domain in domains}) == 1
        common = len(domains) > 1 and (config.data.test_set == "common" or shared)
        tasks = domain_incremental(domains, common)
        tests = [replace(tasks[0], name="all domains")] if common else tasks
        stream = Stream(tasks, tests, _at_once(whole), one_test=common)
        return _as_one_task(stream) if config.tasks == 1 else stream
    disjoint = sum(len(domain.train.classes) for domain in domains) == len(whole.train.classes)
    if len(domains) > 1 and disjoint:
        tasks = [Task(domain.name, domain.train.classes, domain.train, domain.test) for domain in domains]
        _check_tasks(tasks, config)
        stream = Stream(tasks, tasks, _at_once(whole))
        return _as_one_task(stream) if config.tasks == 1 else stream
    tasks = class_incremental(whole, config.tasks, config.data.class_order, config.seed)
    return Stream(tasks, tasks, Task("all tasks", order, whole.train.of_classes(order), whole.test))


def _check_tasks(tasks: Sequence[Task], config: Config) -> None:
    """Raise UserError for a number of tasks that was written by hand, where each data set is a task of its own."""
    sizes = tuple(len(task.classes) for task in tasks)
    if "tasks" in config.model_fields_set and config.tasks not in (1, len(tasks), sizes):
        raise UserError(
            f"tasks={show(config.tasks)} is not read where the data are {len(tasks)} data sets of different classes "
            f"({', '.join(task.name for task in tasks[:5])}), a task each; leave it out, or write tasks=1"
        )


def _at_once(whole: Split) -> Task:
    return Task("all tasks", whole.train.classes, whole.train, whole.test)


def _as_one_task(stream: Stream) -> Stream:
    """All domains as one task with one test set, which is what tasks=1 asks for."""
    return replace(stream, tasks=[stream.everything], tests=[stream.everything])
