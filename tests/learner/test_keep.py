"""What a method keeps beside the images of the memory comes back with them, from the store and from the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Steps, Stop, make_config, run_quietly, same_state, timeless

from promptcl import store
from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Config
from promptcl.data.images import ImageSet
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.learner.learner import Learner

DISTILLED = '''"""A head whose old logits are kept beside the images of the memory, as DER++ does (arXiv 2004.07211)."""
import torch
from promptcl.methods import linear

class Model(linear.Model):
    def keep(self, backbone, batch):
        return {"logits": self.logits(backbone, batch), "label": batch.labels_B.float()}

    def loss(self, backbone, batch):
        loss = super().loss(backbone, batch)
        if not batch.kept:
            return loss
        old_RK, kept_RK = self.logits(backbone, batch)[batch.old_B], batch.kept["logits"]
        known_RK = ~kept_RK.isnan()
        assert known_RK.all(1).logical_or(known_RK.any(1)).logical_or(kept_RK.isnan().all(1)).all()
        assert (batch.kept["label"].nan_to_num(-1.0) - batch.labels_B[batch.old_B]).mul(known_RK.any(1)).eq(0).all()
        return loss + (old_RK[:, : kept_RK.shape[1]] - kept_RK.nan_to_num())[known_RK].square().sum() / len(old_RK)
'''


@pytest.fixture(autouse=True)
def distilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method in the current folder."""
    (tmp_path / "distilled.py").write_text(DISTILLED)
    monkeypatch.chdir(tmp_path)


def settings(name: str = "distilled", **memory: Any) -> Config:
    return make_config(tasks=5, method={"name": name}, memory={"per_class": 2, "batch_size": 4, **memory})


def test_each_image_has_its_row_and_later_rows_are_longer(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(settings(), backbone)
    learner.learn(digits[0])
    kept = learner.memory.kept
    assert kept["logits"].shape == (4, 2)
    assert kept["label"].tolist() == [0, 0, 1, 1]
    first = kept["logits"].clone()
    learner.learn(digits[1])
    kept = learner.memory.kept
    assert kept["logits"].shape == (8, 4)
    assert torch.equal(kept["logits"][:4, :2], first)  # of the head as it was then
    assert kept["logits"][:4, 2:].isnan().all()
    assert not kept["logits"][4:].isnan().any()
    assert kept["label"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("stored", [True, False])
def test_it_comes_back_from_a_store(stored: bool, backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """Without the images in the store, their rows wait there until the images are given back."""
    config, folder = settings(store=stored), tmp_path / "store"
    whole, other = Learner(config, backbone), Learner(settings("linear"), backbone)
    for images in digits[:4]:
        whole.learn(images)
        other.learn(images)
    assert not same_state(whole, other)  # what is kept has a say
    Learner(config, backbone).save(folder)
    for number, images in enumerate(digits[:4]):
        parts = Learner.load(folder, backbone=backbone, trust=True)
        for past in range(0 if stored else number):
            parts.remember(digits[past], past)
        parts.learn(images)
        parts.save(folder)
    assert same_state(parts, whole)
    assert {name for name in store.load(folder, trust=True).state if name.startswith("memory.kept.")} == {
        "memory.kept.logits",
        "memory.kept.label",
    }
    assert any(name.startswith("memory.picture.") for name in store.load(folder, trust=True).state) == stored
    for name, rows in whole.memory.kept.items():
        assert torch.equal(rows.nan_to_num(9), parts.memory.kept[name].nan_to_num(9))
    if stored:  # also of some of the images
        again = Learner.load(folder, backbone=backbone, trust=True).memory
        assert again.images is not None
        some = again.kept_of(again.images.select([5, 2]))
        assert torch.equal(some["label"], again.kept["label"][[5, 2]])


@pytest.mark.slow
@pytest.mark.parametrize("stored", [True, False])
def test_a_run_goes_on_with_it(stored: bool, tmp_path: Path) -> None:
    class Stopping(QuietUi):
        """Stops in the middle of the fourth task."""

        steps = Steps(7)

        def stage(self, number: int, steps: int) -> None:
            self.steps.stage(number, steps)

        def step(self) -> None:
            self.steps.step()

    config, out = settings(store=stored), tmp_path / "out"
    whole = run_quietly(config, tmp_path / "whole")
    with pytest.raises(Stop):
        experiment.run(config, out, Stopping(out, write=lambda line: None))
    assert len(Learner.load(out / "learner", trust=True).history) == 3
    assert timeless(run_quietly(config, out, resume=True)) == timeless(whole)
    assert whole["warnings"] == []
