"""What a save refuses: another learner's store, a damaged one, a learner that did not finish."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Steps, make_config

from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.learner.learner import Learner


@pytest.fixture
def folder(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> Path:
    """A store that knows two digits."""
    learner = Learner(make_config(), backbone)
    learner.learn(digits[0])
    learner.save(tmp_path / "store")
    return tmp_path / "store"


def test_no_learner_is_written_over_by_another(folder: Path, backbone: Backbone, digits: list[ImageSet]) -> None:
    before = (folder / "learner.json").read_bytes()
    with pytest.raises(UserError, match="does not descend from"):
        Learner(make_config(), backbone).save(folder)
    first, second = Learner.load(folder, backbone=backbone), Learner.load(folder, backbone=backbone)
    first.learn(digits[1])
    second.learn(digits[2])
    assert (folder / "learner.json").read_bytes() == before
    first.save(folder)
    with pytest.raises(UserError, match="load it again and repeat, or save to another folder"):
        second.save(folder)
    assert Learner.load(folder, backbone=backbone).classes == ["0", "1", "2", "3"]
    second.save(folder.with_name("another"))
    assert Learner.load(folder.with_name("another"), backbone=backbone).classes == ["0", "1", "4", "5"]


def test_a_damaged_store_is_not_written_over(folder: Path, backbone: Backbone) -> None:
    learner = Learner.load(folder, backbone=backbone)
    (folder / "learner.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        learner.save(folder)
    assert (folder / "learner.json").read_text() == "{"


def test_a_learner_interrupted_while_it_learned_is_not_saved(
    folder: Path, backbone: Backbone, digits: list[ImageSet]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    learner = Learner.load(folder, backbone=backbone)
    with pytest.raises(KeyboardInterrupt):
        learner.learn(digits[0], progress=Steps(1, KeyboardInterrupt))
    with pytest.raises(UserError, match="interrupted while it learned"):
        learner.save(folder)
    with pytest.raises(UserError, match="interrupted while it learned"):
        learner.learn(digits[0])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
