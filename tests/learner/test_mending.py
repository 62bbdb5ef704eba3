"""What was learned is changed as if it had been learned so from the start."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import after_operation, in_child
from helpers import Steps, Stop, make_config

from promptcl import store
from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet, concat
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.learner.mending import mendable_methods
from promptcl.methods._base import Method
from promptcl.methods.ncm import Model as NCM
from promptcl.store.checkpoint import interrupted

ROWS = {"name": "tests.rows_method"}


def make(backbone: Backbone, *tasks: ImageSet, **changes: Any) -> Learner:
    """A learner whose method keeps rows, of some tasks."""
    # One image a batch: the last bits of a feature depend on the batch it was computed in.
    learner = Learner(make_config(**{"method": ROWS, "eval": {"batch_size": 1}, **changes}), backbone)
    for images in tasks:
        learner.learn(images)
    return learner


def test_the_methods_that_are_named_can_take_images_away(backbone: Backbone, digits: list[ImageSet]) -> None:
    names = mendable_methods()
    assert names == ["aper", "ncm", "ranpac", "ridge"]
    for name in names:
        frozen = {"adapt": "none"} if name in ("aper", "ranpac") else {}
        learner = make(backbone, digits[0], method={"name": name, "rows": 100, **frozen})
        learner.forget("0")
        assert learner.classes == ["1"]


def same(one: Learner, other: Learner, close: float = 1e-9) -> None:
    """Two learners are alike in all that they have learned; sums may be added in another order."""
    assert one.classes == other.classes
    assert [task.images for task in one.history] == [task.images for task in other.history]
    ours, theirs = one.method.state_dict(), other.method.state_dict()
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours["mean_KD"], theirs["mean_KD"], rtol=close, atol=close)
    assert sorted(ours["label_N"].tolist()) == sorted(theirs["label_N"].tolist())
    assert one.ledger.names(one.classes) == other.ledger.names(other.classes)
    assert one.calibration == other.calibration


def saved_and_loaded(learner: Learner, folder: Path, backbone: Backbone) -> Learner:
    learner.save(folder)
    return Learner.load(folder, backbone=backbone, trust=True)


def renamed(images: ImageSet, **names: str) -> ImageSet:
    """Images with other names for some classes."""
    return images.renamed([names.get(f"c{name}", name) for name in images.classes])


@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_a_class_forgotten_was_never_learned(
    holdout: float, backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    train = {"train": {"holdout": holdout}}
    learner = make(backbone, *digits[:3], **train)
    record = learner.forget("2")
    assert (record.what, record.names, record.images) == ("forget", ["2"], 8)
    never = make(backbone, digits[0], digits[1].of_classes(["3"]), digits[2], **train)
    never.notes.pop("calibration", None)
    close = 1e-5 if holdout else 1e-9  # other images are held out, and the ViT's last bits depend on the batch
    same(learner, never, close)
    assert "calibration" not in learner.notes
    again = saved_and_loaded(learner, tmp_path / "s", backbone)
    same(again, never, close)
    assert again.changes == learner.changes == [record]
    for one in (again, never):
        one.learn(digits[1].of_classes(["2"]))
        one.notes.clear()
    same(again, never, close)


def test_a_whole_task_forgotten_leaves_no_task(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, *digits[:3])
    learner.forget(["2", "3"])
    never = make(backbone, digits[0], digits[2])
    same(learner, never)
    assert torch.equal(learner.method.state_dict()["rows_ND"], never.method.state_dict()["rows_ND"])


@pytest.mark.parametrize("method", [ROWS, {"name": "l2p"}], ids=["rows", "l2p"])
def test_nothing_left_is_a_new_learner(
    method: dict[str, Any], backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    """Whatever the method: there is nothing to take away from."""
    for change in ("forget", "undo"):
        learner = make(backbone, digits[0], method=method)
        learner.forget(["1", "0"]) if change == "forget" else learner.undo()
        assert (learner.classes, learner.history, learner.ledger.tensors()) == ([], [], {})
        learner = saved_and_loaded(learner, tmp_path / change, backbone)
        learner.learn(digits[1])
        fresh = make(backbone, digits[1], method=method)
        theirs = fresh.method.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in learner.method.state_dict().items())


def test_undo_is_as_before(backbone: Backbone, digits: list[ImageSet]) -> None:
    first, second = digits[0], concat([digits[1], digits[0].select([1, 3])])
    learner, before = make(backbone, first, second), make(backbone, first)
    record = learner.undo()
    assert (record.what, record.names, record.images) == ("undo", ["task 2"], 18)
    same(learner, before)
    ours, theirs = learner.method.state_dict(), before.method.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    learner.undo()
    with pytest.raises(UserError, match="has learned nothing that could be undone"):
        learner.undo()


def test_two_spellings_become_one(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, renamed(digits[0], c0="a cup"), renamed(digits[1], c2="A Cup"))
    assert learner.classes == ["a cup", "1", "A Cup", "3"]
    record = learner.rename("A Cup", "a cup")
    assert (record.names, record.images) == (["A Cup", "a cup"], 8)
    same(learner, make(backbone, renamed(digits[0], c0="a cup"), renamed(digits[1], c2="a cup")))


@pytest.mark.parametrize("method", [ROWS, {"name": "l2p"}], ids=["rows", "l2p"])
def test_another_name_changes_no_tensor(
    method: dict[str, Any], backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    learner = make(backbone, *digits[:2], method=method, memory={"per_class": 2, "store": True})
    learner.save(tmp_path / "s")
    before = store.load(tmp_path / "s", trust=True)
    learner.rename("0", "zero")
    learner.save(tmp_path / "s")
    after = store.load(tmp_path / "s", trust=True)
    assert after.classes == ["zero", "1", "2", "3"]
    assert after.tasks[0].images == {"zero": 8, "1": 8}
    moved = {name for name, value in after.state.items() if not value.equal(before.state[name])}
    assert moved == {"memory.digests"}  # which are of class and content
    again = Learner.load(tmp_path / "s", backbone=backbone, trust=True)
    again.learn(renamed(digits[0], c0="zero"))
    assert len(again.memory) == 8  # none is held twice
    for name in ("unknown", "zero", "a\x07b", "", " "):
        with pytest.raises(UserError, match=r"another name|rename it"):
            again.rename("zero", name)
    with pytest.raises(UserError, match="class '0' was never learned; its classes are zero, 1, 2, 3"):
        again.rename("0", "x")


def test_images_of_the_wrong_class_move(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """As if the folder had been right."""
    labels = digits[0].labels.copy()
    wrong = np.flatnonzero(labels == 0)[2:5]
    labels[wrong] = 1
    mistaken = digits[0].labelled(["0", "1"], labels)
    learner = make(backbone, mistaken, digits[1])
    found = learner.correct(digits[0].select([int(i) for i in np.flatnonzero(digits[0].labels == 0)]), "0")
    assert (found.were, found.moved, found.known, found.learned, found.gone) == ({"1": 3}, 3, 5, 0, [])
    assert found.record is None
    same(learner, make(backbone, digits[0], digits[1]))
    assert [(one.what, one.names, one.images) for one in learner.changes] == [("correct", ["0"], 3)]
    assert learner.correct(digits[0].select(wrong), "0").known == 3
    assert len(learner.changes) == 1  # where nothing changed, nothing is noted
    same(saved_and_loaded(learner, tmp_path / "s", backbone), learner)


def test_a_class_without_images_vanishes_and_new_images_are_learned(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, digits[0], digits[1].of_classes(["2"]))
    found = learner.correct(concat([digits[1].of_classes(["2"]), digits[2].of_classes(["4"])]), "two")
    assert (found.moved, found.learned, found.gone) == (8, 8, ["2"])
    assert [task.name for task in learner.history] == ["task 1", "task 2", "correction"]
    two = concat([digits[1].of_classes(["2"]).renamed(["two"])])
    same(learner, make(backbone, digits[0], two, digits[2].of_classes(["4"]).renamed(["two"])))


def test_a_moved_image_may_bring_an_older_place(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Classes stand in the order in which their first images were learned."""
    learner = make(backbone, *digits[:2])
    learner.correct(digits[0].select([0]), "3")
    assert learner.classes == ["0", "1", "3", "2"]
    assert [task.images for task in learner.history] == [{"0": 7, "1": 8, "3": 1}, {"2": 8, "3": 8}]
    assert learner.evaluate(digits[1]).images == 16


def test_what_cannot_be_mended_is_refused(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = make(backbone, *digits[:2], method={"name": "l2p"})
    before = {name: value.clone() for name, value in learner.method.state_dict().items()}
    for change in (
        lambda: learner.forget("0"),
        lambda: learner.rename("0", "1"),
        learner.undo,
        lambda: learner.correct(digits[0].select([0]), "1"),
    ):
        with pytest.raises(UserError, match=r"^method.name=l2p has not kept what each image added, .* can") as refusal:
            change()
        can = str(refusal.value).rpartition(": ")[2]
        assert ("ncm" in can) == (NCM.mend is not Method.mend)
    assert learner.classes == ["0", "1", "2", "3"]
    assert learner.changes == []
    assert all(torch.equal(value, before[name]) for name, value in learner.method.state_dict().items())
    with pytest.raises(UserError, match="this method has not kept"):
        learner.method.mend(torch.zeros(32, dtype=torch.long), 1)
    with pytest.raises(UserError, match="class '7' was never learned"):
        learner.forget("7")
    with pytest.raises(UserError, match="name at least one"):
        learner.forget([])


def test_the_memory_keeps_no_image_of_what_is_gone(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    for stored in (False, True):
        learner = make(backbone, *digits[:3], memory={"per_class": 3, "store": True})
        if stored:
            learner = saved_and_loaded(learner, tmp_path / "s", backbone)
        learner.forget("0")
        assert held(learner) == {"1": 3, "2": 3, "3": 3, "4": 3, "5": 3}
        learner.rename("3", "2")
        assert held(learner) == {"1": 3, "2": 3, "4": 3, "5": 3}
        learner.undo()
        assert held(learner) == {"1": 3, "2": 3}
        learner.correct(digits[0].of_classes(["1"]), "2")
        assert held(learner) == {"2": 3}
        again = saved_and_loaded(learner, tmp_path / f"again {stored}", backbone)
        again.learn(digits[1])  # the same images under a name of their own
        assert held(again) == {"2": 3, "3": 3}


def held(learner: Learner) -> dict[str, int]:
    """Images of each class in the memory."""
    images = learner.memory.images
    assert images is not None
    assert len(learner.memory._digests) == len(set(learner.memory._digests)) == len(images)
    return {name: int((images.labels == k).sum()) for k, name in enumerate(images.classes)}


def test_a_checkpoint_of_before_is_not_gone_on_with(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = make(backbone, digits[0], method={"name": "l2p"}, train={"checkpoint_steps": 1})
    learner.save(tmp_path / "s")
    with pytest.raises(Stop):
        learner.learn(digits[1], checkpoint=tmp_path / "s", progress=Steps(2))
    assert interrupted(tmp_path / "s")
    learner = Learner.load(tmp_path / "s", backbone=backbone)
    learner.rename("0", "zero")
    learner.save(tmp_path / "s")
    assert not interrupted(tmp_path / "s")
    learner.learn(digits[1], checkpoint=tmp_path / "s")
    learner.save(tmp_path / "s")
    assert learner.classes == ["zero", "1", "2", "3"]


@pytest.mark.slow
def test_killed_before_each_operation_of_a_save(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """The store holds the learner of before or the one of after, whole."""
    make(backbone, *digits[:2]).save(tmp_path / "s")
    learner = Learner.load(tmp_path / "s", backbone=backbone, trust=True)
    learner.forget(["0", "3"])

    def victim(place: Path, number: int) -> None:
        after_operation(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        learner.save(place)

    found = []
    for number in itertools.count(1):
        place = tmp_path / f"killed{number}"
        shutil.copytree(tmp_path / "s", place)
        if in_child(lambda place=place, number=number: victim(place, number)) == "done":  # type: ignore[misc]
            break
        left = Learner.load(place, backbone=backbone, trust=True)
        found.append((len(left.classes), len(left.changes), len(left.method.state_dict()["rows_ND"])))
    assert set(found) == {(4, 0, 32), (2, 1, 16)}
    assert found == sorted(found, reverse=True)  # old, ..., old, new, ..., new
