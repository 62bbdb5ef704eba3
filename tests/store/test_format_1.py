"""Stores of format 1, written before sums had modules and tasks had stages: they load, answer the same, learn on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import make_config, rewrite

from promptcl import store
from promptcl.config.schema import DataConfig
from promptcl.data.images import ImageSet
from promptcl.data.splits import Split, load_split
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.store import files
from promptcl.store.folder import KIND

OLD = Path(__file__).with_name("format-1")
ANSWERS: dict[str, list[tuple[str, list[tuple[str, float]]]]] = json.loads((OLD / "answers.json").read_text())


@pytest.fixture(scope="module")
def split() -> Split:
    return load_split(DataConfig(name="mnist5k", train_per_class=6, test_per_class=3))


def answers(learner: Learner, images: ImageSet) -> list[tuple[str, dict[str, float]]]:
    return [(one.label, dict(one.top)) for one in learner.predict(images, top=4, threshold=0)]


def pixels(images: ImageSet) -> set[bytes]:
    return {images.image(i).numpy().tobytes() for i in range(len(images))}


@pytest.mark.parametrize("name", ANSWERS)
def test_it_answers_as_it_did_learns_on_and_is_of_the_new_format_then(name: str, split: Split, tmp_path: Path) -> None:
    shutil.copytree(OLD / name, tmp_path / name)
    learner, expected = Learner.load(tmp_path / name, ["device=cpu"]), ANSWERS[name]
    found = answers(learner, split.test.of_classes("0123"))
    assert len(found) == len(expected) == 12
    for (label, values), (old_label, old_values) in zip(found, expected, strict=True):
        assert label == old_label
        assert values == pytest.approx(dict(old_values), abs=1e-5)
    assert [record.name for record in learner.history] == ["digits 01", "digits 23"]
    learner.learn(split.train.of_classes("45"), name="digits 45", checkpoint=tmp_path / name)
    learner.save(tmp_path / name)
    assert json.loads((tmp_path / name / "learner.json").read_text())["format"] == 2
    again = Learner.load(tmp_path / name)
    assert again.classes == list("012345")
    assert answers(again, split.test.of_classes("0145")) == answers(learner, split.test.of_classes("0145"))


def test_what_was_in_it_is_all_there(split: Split, tmp_path: Path) -> None:
    """Shares of the prompts and images of the memory with L2P; exact sums, which are the classifier, with L2P-Ridge."""
    l2p, ridge = Learner.load(OLD / "l2p"), Learner.load(OLD / "ridge")
    kept = store.load(OLD / "l2p").state
    assert torch.equal(l2p.method.state_dict()["chosen_M.value"], kept["chosen_M"])
    assert kept["chosen_M"].sum() > 0
    assert len(l2p.memory) == 4
    assert l2p.calibration.images == 4
    assert l2p.memory.images is not None
    assert pixels(l2p.memory.images) < pixels(split.train.of_classes("0123"))
    counts = ridge.method.state_dict()["ridge.count_K.value"]
    assert counts.tolist() == [6, 6, 6, 6]


def test_a_learner_of_all_tasks_at_once_is_one_sentence(tmp_path: Path) -> None:
    """`joint` was a method: it is a setting of the stream now."""
    shutil.copytree(OLD / "ridge", tmp_path / "store")
    config = json.loads((OLD / "ridge" / "learner.json").read_text())["config"]
    rewrite(tmp_path / "store", config={**config, "method": {"name": "joint"}})
    with pytest.raises(UserError) as raised:
        Learner.load(tmp_path / "store")
    assert str(raised.value) == (
        f"{tmp_path / 'store'} was learned with method.name=joint, which is the setting joint=true of a run now: "
        "expected a learner of another method; learn it again"
    )


def test_moments_of_format_1_are_those_of_the_first_stage(split: Split, tmp_path: Path) -> None:
    """A stream without boundaries: its optimiser goes on, with the names that it had."""
    config = make_config(scenario="gaussian", method={"name": "linear"})
    learner = Learner(config)
    learner.learn(split.train.of_classes("01"))
    learner.save(tmp_path)
    pair = files.read_pair(tmp_path / "learner.json", KIND)
    old = {name.replace("optimizer.0.", "optimizer."): value for name, value in pair.tensors.items()}
    assert old.keys() != pair.tensors.keys()
    files.write_pair(tmp_path / "learner.json", {**pair.document, "format": 1}, old)
    again = Learner.load(tmp_path)
    assert again.moments.keys() == learner.moments.keys() == {0}
    assert again.moments[0].keys() == learner.moments[0].keys()
    for name, value in learner.moments[0].items():
        assert torch.equal(again.moments[0][name], value)
