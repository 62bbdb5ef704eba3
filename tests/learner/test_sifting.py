"""Images learned before are not learned twice, and names that look alike are noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_config

from promptcl import store
from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet, concat
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.learner.sifting import distinct, twins
from promptcl.store import files
from promptcl.store.folder import KIND

NCM: dict[str, Any] = {"name": "ncm"}


def test_only_what_is_new_is_learned(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    part, learner = digits[0].select(range(15)), Learner(make_config(method=NCM), backbone)
    learner.learn(part)
    learner.save(tmp_path)
    learner = Learner.load(tmp_path, backbone=backbone)
    record = learner.learn(digits[0], again=False)
    assert (record.images, record.before, record.warnings) == (1, 15, [])
    assert learner.method.state_dict()["means.count_K.value"].tolist() == [8, 8]
    assert learner.learn(digits[0], again=False).before == 16
    assert len(learner.history) == 2  # nothing was left, so nothing was learned
    learner.learn(digits[0])
    assert learner.method.state_dict()["means.count_K.value"].tolist() == [16, 16]
    learner.save(tmp_path)
    assert learner.sift(digits[0]).before == 16
    assert learner.sift(digits[1]).images is digits[1]


def test_an_image_of_another_class_is_left_out_and_said(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method=NCM), backbone)
    learner.learn(digits[0])
    mixed = concat([digits[0].of_classes(["0"]).renamed(["2"]), digits[1]])
    record = learner.learn(mixed, again=False)
    (sentence,) = record.warnings
    assert sentence.startswith("left out 8 images learned before as another class: ")
    assert sentence.count("(0, now 2)") == 3
    assert " and 5 more; promptcl correct STORE IMAGE... --class NAME" in sentence
    assert learner.history[1].images == {"2": 8, "3": 8}


def test_the_same_image_twice(backbone: Backbone, digits: list[ImageSet]) -> None:
    twice = digits[0].select([0, 1, 2, 2, 0])
    left, more = distinct(twice)
    assert (len(left), more) == (3, 2)
    learner = Learner(make_config(method=NCM), backbone)
    learner.learn(twice, again=False)
    assert learner.history[0].images["0"] + learner.history[0].images["1"] == 3
    labels = digits[0].labels.copy()[[0, 1, 0]]
    labels[2] = 1 - labels[0]
    with pytest.raises(UserError, match=r"\[\d+\] and .*\[\d+\] are the same image in two classes"):
        learner.learn(digits[0].select([0, 1, 0]).labelled(["0", "1"], labels), again=False)
    assert len(learner.history) == 1


def test_a_store_without_a_ledger_learns_on(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = Learner(make_config(method=NCM), backbone)
    learner.learn(digits[0])
    learner.save(tmp_path)
    pair = files.read_pair(tmp_path / "learner.json", KIND)
    document = {key: value for key, value in pair.document.items() if key != "changes"}
    old = {name: tensor for name, tensor in pair.tensors.items() if not name.startswith("images.")}
    files.write_pair(tmp_path / "learner.json", document, old)
    learner = Learner.load(tmp_path, backbone=backbone)
    assert not learner.ledger.whole
    assert learner.changes == []
    assert learner.sift(digits[0]).before == 16  # the very same ones are known by their hash
    assert learner.sift(digits[0].select([0])).before == 0
    learner.learn(digits[1])
    learner.save(tmp_path)
    learner = Learner.load(tmp_path, backbone=backbone)
    assert learner.sift(digits[1].select([0])).before == 1
    with pytest.raises(UserError, match="may have been learned by an older promptcl"):
        learner.correct(digits[0].select([0]), "1")
    learner.rename("0", "zero")  # needs to know nothing
    learner.save(tmp_path)
    assert Learner.load(tmp_path, backbone=backbone).classes == ["zero", "1", "2", "3"]


@pytest.mark.parametrize(
    "forged",
    [
        {"images.label": torch.zeros(16, dtype=torch.int64)},
        {"images.label": torch.full((16,), 2)},
        {"images.label": torch.zeros(16, dtype=torch.int32)},
        {"images.label": torch.tensor(0)},
        {"images.task": torch.ones(16, dtype=torch.int32)},
        {"images.task": torch.full((16,), -1, dtype=torch.int32)},
        {"images.digest": torch.zeros(16, 15, dtype=torch.uint8)},
        {"images.more": torch.zeros(1)},
    ],
    ids=str,
)
def test_a_forged_ledger_is_refused(
    forged: dict[str, torch.Tensor], backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    learner = Learner(make_config(method=NCM), backbone)
    learner.learn(digits[0])
    learner.save(tmp_path)
    pair = files.read_pair(tmp_path / "learner.json", KIND)
    files.write_pair(tmp_path / "learner.json", pair.document, {**pair.tensors, **forged})
    with pytest.raises(UserError, match="its list of learned images is not that of its tasks and classes"):
        Learner.load(tmp_path, backbone=backbone)
    assert store.checksum(tmp_path) is not None


def test_a_method_may_not_use_the_name(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = Learner(make_config(method=NCM), backbone)
    learner.method.images = torch.nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="optimizer, memory and images are names of the store"):
        learner.save(tmp_path)


def test_names_that_look_alike() -> None:
    new = ["Cup", "fork", "Wine_Glass", "wine-glass", "cafe\u0301", "cups"]
    assert twins(new, ["cup", "café", "spoon"]) == [
        ("Cup", "cup"),
        ("wine-glass", "Wine_Glass"),
        ("cafe\u0301", "café"),
    ]
    assert twins(["cup"], ["cup"]) == []
