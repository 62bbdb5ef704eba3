"""A class of one image among classes of many, as a correction makes it: the others are still told apart."""

from __future__ import annotations

from helpers import make_config

from promptcl.data.splits import load_split
from promptcl.learner.learner import Learner
from promptcl.recipes import load_config


def test_one_image_of_a_new_class_spoils_no_other() -> None:
    split = load_split(make_config(data={"train_per_class": 40, "test_per_class": 20}).data)
    known, new = ["0", "1", "2", "3", "4"], ["7", "9"]
    learner = Learner(load_config("grow-demo", ["device=cpu"]))
    learner.learn(split.train.of_classes(known))
    before = learner.evaluate(split.test.of_classes(known)).accuracy
    for name in new:
        one = split.train.of_classes([name])
        learner.learn(one.select([0]))
    after = learner.evaluate(split.test.of_classes(known)).accuracy
    assert before > 90
    assert after > before - 8
