"""Which test sets a stream evaluates on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from promptcl.config import Config
from promptcl.data import ArraySource, Domain, ImageSet, Stream, make_stream
from promptcl.data.splits import join


def images(classes: list[str], each: int = 4) -> ImageSet:
    pixels = np.zeros((each * len(classes), 4, 4), dtype=np.uint8)
    return ImageSet(ArraySource(pixels, "zeros"), classes, np.repeat(np.arange(len(classes)), each))


ONE = [Domain("one", images(list("abcd")), images(list("abcd"), 2))]
DISJOINT = [Domain(name, images(list(name)), images(list(name), 2)) for name in ("ab", "cd")]
DOMAINS = [Domain(name, images(list("xyz")), images(list("xyz"), 2)) for name in ("sun", "rain", "snow")]


def stream(domains: list[Domain], **settings: Any) -> Stream:
    return make_stream(domains, Config.model_validate({"tasks": 2, **settings}))


@pytest.mark.parametrize(
    ("domains", "settings", "tests"),
    [
        (ONE, {}, ["task 1", "task 2"]),
        (DISJOINT, {}, ["ab", "cd"]),
        (DOMAINS, {"scenario": "domain"}, ["sun", "rain", "snow"]),
        (DOMAINS, {"scenario": "domain", "data": {"test_set": "common"}}, ["all domains"]),
        (ONE, {"scenario": "gaussian", "gaussian": {"micro_tasks": 5}}, ["all images"]),
    ],
    ids=["class", "disjoint", "domain", "common", "gaussian"],
)
def test_joint_learns_everything_and_keeps_the_tests(
    domains: list[Domain], settings: dict[str, Any], tests: list[str]
) -> None:
    apart, joint = stream(domains, **settings), stream(domains, **settings, joint=True)
    assert [task.name for task in apart.tests] == [task.name for task in joint.tests] == tests
    assert len(joint.tasks) == 1
    assert len(joint.tasks[0].train) == len(join(domains).train)
    assert set(joint.tasks[0].classes) == set(join(domains).train.classes)
    assert joint.tests_after(0) == joint.tests
    assert joint.unknown_rows == len(tests) - 1
    assert apart.unknown_rows == 0
    assert not joint.compared
    single = len(tests) == 1
    assert apart.one_test == joint.one_test == single
    assert apart.compared == (not single)
    assert [task.name for task in apart.tests_after(0)] == tests[:1]
    assert apart.tests_after(len(apart.tasks) - 1) == apart.tests


def test_a_common_test_set_is_the_one_of_every_task() -> None:
    common = stream(DOMAINS, scenario="domain", data={"test_set": "common"})
    assert len(common.tests[0].test) == 18
    assert all(task.test is common.tests[0].test for task in common.tasks)


def test_one_task_of_domains_has_one_test_set() -> None:
    for domains in (DISJOINT, DOMAINS):
        scenario = "class" if domains is DISJOINT else "domain"
        once = stream(domains, scenario=scenario, tasks=1)
        assert [task.name for task in once.tasks] == [task.name for task in once.tests] == ["all tasks"]
        assert len(once.tests_after(0)[0].test) == len(join(domains).test)
