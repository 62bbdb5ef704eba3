"""What was undone or did not end leaves no trace: depths of images, a move that failed, a learner half changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Steps, Stop, make_config
from PIL import Image

from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.learner.export import trace
from promptcl.learner.learner import Learner

ROWS = {"name": "ncm", "rows": 100}


def deep(folder: Path, largest: int, classes: str, seed: int) -> Path:
    """Two images of 16 bits for each class, whose values end at `largest`."""
    draw = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(2):
            values = draw.integers(0, largest + 1, (32, 32), dtype=np.uint16)
            values[0, 0] = largest
            Image.fromarray(values).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def tenbit(tmp_path: Path) -> Path:
    return deep(tmp_path / "ten", 1023, "ab", 0)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return deep(tmp_path / "full", 65535, "cd", 1)


def answers(learner: Learner, folder: Path) -> list[tuple[str, float]]:
    return [(one.label, one.familiarity) for one in learner.predict(folder, threshold=0)]


@pytest.mark.parametrize(
    "undone",
    [lambda learner: learner.undo(), lambda learner: learner.forget(["c", "d"])],
    ids=["undo", "forget"],
)
def test_deeper_images_that_are_gone_change_no_answer(
    undone: Callable[[Learner], Any], backbone: Backbone, tenbit: Path, full: Path, tmp_path: Path
) -> None:
    learner = Learner(make_config(method=ROWS), backbone)
    learner.learn(tenbit)
    before = answers(learner, tenbit)
    learner.learn(full)
    assert answers(learner, tenbit) != before  # nearly black now
    learner.save(tmp_path / "s")
    learner = Learner.load(tmp_path / "s", backbone=backbone)
    undone(learner)
    assert answers(learner, tenbit) == before
    learner.undo()
    assert learner.notes == {}


def test_what_was_learned_at_a_depth_keeps_it(backbone: Backbone, tenbit: Path, full: Path, tmp_path: Path) -> None:
    """The first task is gone, and the second was learned at its depth."""
    learner = Learner(make_config(method=ROWS), backbone)
    learner.learn(full)
    learner.learn(tenbit)
    before = answers(learner, tenbit)
    learner.forget(["c", "d"])
    assert [one[1] for one in answers(learner, tenbit)] == pytest.approx([one[1] for one in before])
    assert learner.notes["depths"] == [[0, 16]]
    assert not learner.learn(deep(tmp_path / "more", 1023, "e", 2)).warnings  # still taken for 16 bits


def test_a_store_of_an_older_promptcl_has_one_depth(backbone: Backbone, tenbit: Path, full: Path) -> None:
    learner = Learner(make_config(method=ROWS), backbone)
    learner.learn(full)
    wanted = answers(learner, tenbit)
    del learner.notes["depths"]
    learner.notes["depth"] = 16
    assert answers(learner, tenbit) == wanted
    for damaged in ([[0, 99]], [[0, True]], [["a", 16]], 7, [[5, 16]]):
        learner.notes["depths"] = damaged
        assert answers(learner, tenbit)  # taken for none, and no error


def test_a_correction_that_cannot_be_moves_nothing(backbone: Backbone, tenbit: Path, tmp_path: Path) -> None:
    learner = Learner(make_config(method=ROWS), backbone)
    learner.learn(tenbit)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.png"):
        learner.correct([tenbit / "a" / "0.png", tenbit / "a" / "1.png", tmp_path / "bad.png"], "b")
    assert learner.classes == ["a", "b"]
    assert learner.changes == []


def test_a_learner_that_was_interrupted_answers_nothing(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method={"name": "l2p", "diversify": "slots"}), backbone)
    learner.learn(digits[0])
    with pytest.raises(Stop):
        learner.learn(digits[1], progress=Steps(1))
    for ask in (learner.evaluate, learner.predict, lambda images: trace(learner)):
        with pytest.raises(UserError, match="interrupted while it learned: expected a whole one, load it again"):
            ask(digits[0])


def test_no_image_at_all_is_refused(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method=ROWS), backbone)
    none = digits[0].select([])
    for ask in (learner.learn, learner.evaluate):
        with pytest.raises(UserError, match="no images were given; expected at least one"):
            ask(none)
    learner.learn(digits[0])
    with pytest.raises(UserError, match="no images were given"):
        learner.predict(none)
    assert learner.classes == ["0", "1"]


def test_a_class_of_which_nothing_was_held_out_is_not_counted(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(train={"holdout": 0.25}), backbone)
    few = digits[0].select([*np.flatnonzero(digits[0].labels == 0).tolist(), int(np.flatnonzero(digits[0].labels)[0])])
    held = learner.learn(few).held_out
    assert list(held) == ["0"]
    assert held["0"][1] == 2
