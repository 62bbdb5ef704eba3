"""A checkpoint that cannot be gone on from: of something else, damaged, forged, older, newer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import Steps, Stop, digit_tasks, make_config, same_state

from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.store import files
from promptcl.store.checkpoint import Checkpoint

TRAIN = {"epochs": 2, "batch_size": 8, "checkpoint_steps": 2}


@pytest.fixture(scope="module")
def digits() -> list[ImageSet]:
    """Enough for four steps an epoch."""
    return digit_tasks(14)


@pytest.fixture
def interrupted(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> Path:
    learner = Learner(make_config(train=TRAIN), backbone)
    learner.save(tmp_path / "store")
    with pytest.raises(Stop):
        learner.learn(digits[0], progress=Steps(5), checkpoint=tmp_path / "store")
    return tmp_path / "store"


def test_other_images_or_settings_do_not_go_on(interrupted: Path, backbone: Backbone, digits: list[ImageSet]) -> None:
    with pytest.raises(UserError, match=r"interrupted in .* with other images: repeat what was interrupted, or delete"):
        Learner.load(interrupted, backbone=backbone).learn(digits[1], checkpoint=interrupted)
    fewer = digits[0].select(range(len(digits[0]) - 1))
    with pytest.raises(UserError, match="with other images"):
        Learner.load(interrupted, backbone=backbone).learn(fewer, checkpoint=interrupted)
    with pytest.raises(UserError, match="with other settings"):
        Learner.load(interrupted, ["train.lr=1"], backbone).learn(digits[0], checkpoint=interrupted)
    Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)


def test_a_checkpoint_of_an_older_store_is_ignored(
    interrupted: Path, backbone: Backbone, digits: list[ImageSet]
) -> None:
    kept = interrupted.with_name("kept")
    shutil.copytree(interrupted / "checkpoint", kept)
    learner = Learner.load(interrupted, backbone=backbone)
    learner.learn(digits[1])
    learner.save(interrupted)
    shutil.copytree(kept, interrupted / "checkpoint")
    learner.learn(digits[2], checkpoint=interrupted)
    whole = Learner(make_config(train=TRAIN), backbone)
    whole.learn(digits[1])
    whole.learn(digits[2])
    assert same_state(learner, whole)


def test_a_damaged_checkpoint_says_what_to_do(interrupted: Path, backbone: Backbone, digits: list[ImageSet]) -> None:
    for path in (interrupted / "checkpoint").iterdir():
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:200] + b"~" + whole[201:]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="delete this folder to learn what was interrupted from its start"):
                Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "odd",
    [
        {"groups": []},
        {"done": "x"},
        {"done": -1},
        {"done": 999},
        {"finished": True},
        {"schedule": 3, "done": None},
        {"seconds": []},
    ],
    ids=str,
)
def test_a_forged_checkpoint_is_one_sentence(
    odd: dict[str, object], interrupted: Path, backbone: Backbone, digits: list[ImageSet]
) -> None:
    path = interrupted / "checkpoint" / "stage-0.json"
    pair = files.read_pair(path, files.Kind("", 2, ""))
    files.write_pair(path, {**pair.document, **odd}, pair.tensors)
    with pytest.raises(UserError, match=r"does not fit what is learned .* delete this folder"):
        Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)


@pytest.mark.parametrize("shape", [None, (3,), (1,), (64,)], ids=str)
def test_forged_tensors_of_a_checkpoint_are_one_sentence(
    shape: tuple[int, ...] | None, interrupted: Path, backbone: Backbone, digits: list[ImageSet]
) -> None:
    """Absent, of a shape that does not fit, of shapes that could be broadcast."""
    path, name = interrupted / "checkpoint" / "stage-0.json", "method.head.weight_KD"
    pair = files.read_pair(path, files.Kind("", 2, ""))
    tensors = dict(pair.tensors)
    assert tensors[name].shape == (2, 64)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(shape)
    files.write_pair(path, pair.document, tensors)
    with pytest.raises(UserError, match=r"does not fit what is learned .* delete this folder"):
        Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)


def test_a_checkpoint_of_format_1_is_ignored_and_goes_with_the_save(
    backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    """Format 1 had one pair, `checkpoint.json`: its numbers are those of another order of training."""
    learner, folder = Learner(make_config(train=TRAIN), backbone), tmp_path / "checkpoint"
    learner.save(tmp_path)
    document = {"format": 1, "identity": {"base": learner.ancestors[-1]}, "done": 3, "seconds": 1.0}
    files.write_pair(folder / "checkpoint.json", document, {"x": torch.zeros(3)})
    learner.learn(digits[0], checkpoint=tmp_path)
    whole = Learner(make_config(train=TRAIN), backbone)
    whole.learn(digits[0])
    assert same_state(learner, whole)
    assert (folder / "checkpoint.json").exists()
    learner.save(tmp_path)
    assert not folder.exists()


def test_a_checkpoint_of_a_newer_format_asks_for_a_newer_promptcl(
    interrupted: Path, backbone: Backbone, digits: list[ImageSet]
) -> None:
    path = interrupted / "checkpoint" / "stage-0.json"
    pair = files.read_pair(path, files.Kind("", 2, ""))
    files.write_pair(path, {**pair.document, "format": 3}, pair.tensors)
    with pytest.raises(UserError, match="has format 3, this promptcl reads up to 2: install a newer promptcl"):
        Learner.load(interrupted, backbone=backbone).learn(digits[0], checkpoint=interrupted)


def test_a_checkpoint_folder_that_is_a_link_is_refused(
    backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    learner = Learner(make_config(train=TRAIN), backbone)
    learner.save(tmp_path / "store")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store" / "checkpoint").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link, expected a folder of the store; remove it"):
        Checkpoint(tmp_path / "store", {"base": ""}, 1)
    with pytest.raises(UserError, match="is a link, expected a folder of the store; remove it"):
        learner.learn(digits[0], checkpoint=tmp_path / "store")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_learner_that_was_never_saved_has_no_checkpoints(
    backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="save this one there before it learns"):
        Learner(make_config(), backbone).learn(digits[0], checkpoint=tmp_path)


def test_frozen_weights_of_a_copy_are_in_no_checkpoint(
    backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    """Of a ViT-B of which one block is trained they would be 300 MB, once a minute."""
    method = {"name": "finetune", "blocks": 1}
    whole = Learner(make_config(train=TRAIN, method=method), backbone)
    whole.learn(digits[0])
    learner = Learner(make_config(train=TRAIN, method=method), backbone)
    learner.save(tmp_path / "store")
    with pytest.raises(Stop):
        learner.learn(digits[0], progress=Steps(5), checkpoint=tmp_path / "store")
    (file,) = (tmp_path / "store" / "checkpoint").glob("*.safetensors")
    trained = sum(p.numel() * p.element_size() for p in whole.method.parameters())
    assert file.stat().st_size < 3.2 * trained  # and two moments of each
    again = Learner.load(tmp_path / "store", backbone=backbone)
    again.learn(digits[0], checkpoint=tmp_path / "store")
    assert same_state(again, whole)
