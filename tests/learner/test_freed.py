"""A learner that nobody holds any more is gone at once, and with it what it has kept; a copy has all of its own."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
from helpers import SMALL, TRAINED

from promptcl.data.images import ImageSet
from promptcl.learner.learner import Learner
from promptcl.recipes import load_config
from promptcl.training import Batches


@pytest.mark.parametrize(("recipe", "settings"), [("grow-demo", SMALL), ("grow-adapted-demo", TRAINED)])
def test_a_learner_is_freed_without_a_search(recipe: str, settings: list[str], digits: list[ImageSet]) -> None:
    """Python looks for circles so rarely that a server would hold many old learners."""
    learner = Learner(load_config(recipe, settings))
    gc.collect()
    gc.disable()
    try:
        learner.learn(digits[0])
        learner.learn(digits[1])
        learner.predict(digits[0])
        learner.left_out()
        parts = (learner, learner.method, learner.batches, learner.batches.queries)
        held = [weakref.ref(part) for part in parts]
        del learner, parts
        assert [reference() for reference in held] == [None] * 4
    finally:
        gc.enable()


def test_a_copy_asks_its_own_method(digits: list[ImageSet]) -> None:
    learner = Learner(load_config("grow-demo", SMALL))
    learner.learn(digits[0])
    other = copy.deepcopy(learner)
    wanted = learner.predict(digits[0])
    batches: Batches = learner.batches
    del learner
    assert other.predict(digits[0]) == wanted
    with pytest.raises(ReferenceError, match="is gone"):
        batches.query(batches.eval_images(digits[0], [0]))
