"""The memory's images in the learner's folder: what learns on from there replays them, bit for bit, or is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_config, write_folders

from promptcl import store
from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Config, DataConfig
from promptcl.data.images import ImageSet
from promptcl.data.inputs import labelled
from promptcl.data.splits import load_split
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.methods._base import Stage
from promptcl.recipes.load import load_config
from promptcl.store import files
from promptcl.store.folder import KIND
from promptcl.training import Memory, Trainer
from promptcl.training import memory as memories
from promptcl.training.memory import _png


def settings(**memory: Any) -> Config:
    return make_config(memory={"per_class": 2, **memory})


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two digits each; the third has a digit of the first again."""
    train = load_split(DataConfig(name="mnist5k", train_per_class=9)).train
    root = tmp_path_factory.mktemp("tasks")
    return [write_folders(train.of_classes(list(names)), root / names) for names in ("01", "23", "14")]


@pytest.fixture(scope="module")
def learned(backbone: Backbone, tasks: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has learned two tasks and keeps two images of each class; not to be written to."""
    folder = tmp_path_factory.mktemp("learned") / "store"
    Learner(settings(store=True), backbone).save(folder)
    for task in tasks[:2]:
        learner = Learner.load(folder, backbone=backbone)
        learner.learn(task)
        learner.save(folder)
    return folder


@pytest.fixture
def folder(learned: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(learned, tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.slow
def test_a_new_process_replays_what_one_process_would(folder: Path, backbone: Backbone, tasks: list[Path]) -> None:
    subprocess.run([sys.executable, "-m", "promptcl", "learn", folder, tasks[2], "--quiet", "--again"], check=True)
    found, whole = Learner.load(folder, backbone=backbone), Learner(settings(store=True), backbone)
    for task in tasks:
        whole.learn(task)
    ours, theirs = found.method.state_dict(), whole.method.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert found.classes == whole.classes == ["0", "1", "2", "3", "4"]
    assert len(found.memory) == len(whole.memory) == 10
    assert found.memory.images is not None
    assert whole.memory.images is not None
    for i in range(10):
        assert torch.equal(found.memory.images.image(i), whole.memory.images.image(i))
    forgetful = Learner(make_config(), backbone)
    for task in tasks:
        forgetful.learn(task)
    assert not all(torch.equal(ours[name], value) for name, value in forgetful.method.state_dict().items())


def test_without_it_nothing_of_an_image_is_kept(backbone: Backbone, tasks: list[Path], tmp_path: Path) -> None:
    learner = Learner(settings(), backbone)
    learner.learn(tasks[0])
    learner.save(tmp_path)
    assert not any(name.startswith("memory.") for name in store.load(tmp_path).state)
    with pytest.raises(UserError, match=r"not in the store: .* or begin with memory\.store=true"):
        Learner.load(tmp_path, backbone=backbone).learn(tasks[1])
    Learner.load(tmp_path, ["memory.per_class=0"], backbone).learn(tasks[1])


def test_a_store_may_give_up_its_memory(folder: Path, backbone: Backbone, tasks: list[Path]) -> None:
    learner = Learner.load(folder, ["memory.per_class=0", "memory.store=false"], backbone)
    assert len(learner.memory) == 0
    learner.learn(tasks[2])
    learner.save(folder)
    assert not any(name.startswith("memory.") for name in store.load(folder).state)


def test_colour_and_large_images_come_back_as_they_were() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(256, (3, 700, 9), generator=generator, dtype=torch.uint8) for _ in range(3)]
    memory, again = Memory(2), Memory(2)
    memory.add(labelled([p.permute(1, 2, 0).numpy() for p in pixels], ["a", "b", "a"]), generator)
    again.restore(memory.tensors(["b", "a"], images=True), ["b", "a"], 1)
    assert again.images is not None
    assert [again.images.classes[k] for k in again.images.labels] == ["a", "b", "a"]
    assert all(torch.equal(again.images.image(i), memory.images.image(i)) for i in range(3))  # type: ignore[union-attr]
    again.add(memory.images, generator)  # type: ignore[arg-type]
    assert len(again) == 3  # known by their content
    assert again.images is not None
    assert memory.images is not None
    assert not len(again.images.without(memory.images))


def test_an_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again at each save: half a second for a photo, of which a memory may hold thousands."""
    generator, encoded = torch.Generator(), list[torch.Tensor]()

    def png(image: torch.Tensor) -> bytes:
        encoded.append(image)
        return _png(image)

    monkeypatch.setattr(memories, "_png", png)
    memory, again = Memory(2), Memory(2)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    memory.add(labelled(pixels[:2], ["a", "b"]), generator)
    first = memory.tensors(["a", "b", "c"], images=True)
    memory.add(labelled(pixels[2:], ["c", "c", "c"]), generator)
    second = memory.tensors(["a", "b", "c"], images=True)
    assert len(encoded) == 4
    assert all(torch.equal(first[f"memory.picture.{i}"], second[f"memory.picture.{i}"]) for i in range(2))
    again.restore(second, ["a", "b", "c"], 1)
    third = again.tensors(["a", "b", "c"], images=True)
    assert len(encoded) == 4
    assert third.keys() == second.keys()
    assert all(torch.equal(third[name], second[name]) for name in second)
    older = {name: value for name, value in second.items() if name != "memory.contents"}
    again.restore(older, ["a", "b", "c"], 1)
    assert len(again) == 4


def test_a_memory_holds_no_images_but_its_own() -> None:
    """Arrays of thousands of images, of which one is kept, are let go."""
    memory, generator = Memory(1), torch.Generator().manual_seed(0)
    for seed in range(20):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        memory.add(labelled(pixels, ["a"] * 4), generator)
    assert memory.images is not None
    assert len(memory.images.sources) <= 2  # that of the image, and the one offered last


@pytest.mark.parametrize(
    "change",
    [
        {"memory.labels": torch.tensor([0, 1, 2, 3, 0, 1, 2, 99])},
        {"memory.labels": torch.tensor([0, 1, 2, 3, 0, 1, 2, -1])},
        {"memory.draws": torch.zeros(8)},
        {"memory.digests": torch.zeros(8, 31, dtype=torch.uint8)},
        {"memory.picture.3": torch.zeros(5)},
        {"memory.picture.8": torch.zeros(5, dtype=torch.uint8)},
        {"memory.picture.3": None},
        {"memory.draws": None},
    ],
)
def test_forged_memories_are_refused(folder: Path, backbone: Backbone, change: dict[str, torch.Tensor | None]) -> None:
    pair = files.read_pair(folder / "learner.json", KIND)
    tensors = {name: value for name, value in {**pair.tensors, **change}.items() if value is not None}
    files.write_pair(folder / "learner.json", pair.document, tensors)
    with pytest.raises(UserError, match="the images of its memory are not what is expected"):
        Learner.load(folder, backbone=backbone)


def test_a_forged_image_is_a_sentence_when_it_is_replayed(folder: Path, backbone: Backbone, tasks: list[Path]) -> None:
    pair = files.read_pair(folder / "learner.json", KIND)
    forged = {f"memory.picture.{i}": torch.zeros(9, dtype=torch.uint8) for i in range(8)}
    files.write_pair(folder / "learner.json", pair.document, {**pair.tensors, **forged})
    with pytest.raises(UserError, match=r"memory\.picture\.\d does not decode as an image"):
        Learner.load(folder, backbone=backbone).learn(tasks[2])


def test_a_store_of_no_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"memory\.store=true keeps memory\.per_class images of each class; write"):
        load_config("l2p", ["memory.store=true"])
    assert load_config("l2p", ["memory.store=true", "memory.per_class=5"]).memory.store


@pytest.mark.parametrize("name", ["l2p", "linear", "l2p_ridge", "ncm", "ridge"])
def test_a_memory_that_is_not_read_is_said(name: str, backbone: Backbone, tasks: list[Path]) -> None:
    """L2P-Ridge trains in its first task alone, in which the memory has no image yet."""
    learner = Learner(settings().model_copy(update={"method": {"name": name}}), backbone)
    assert learner.learn(tasks[0]).warnings == []
    said = learner.learn(tasks[1]).warnings
    assert said == (
        [] if name in ("l2p", "linear") else [f"method.name={name} does not replay images, so memory.per_class is idle"]
    )
    assert len(learner.memory) == 8


def test_held_out_images_are_not_replayed_before_they_were_measured(
    backbone: Backbone, tasks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(images: ImageSet) -> set[bytes]:
        return {images.digest(i) for i in range(len(images))}

    def watched(trainer: Trainer, stage: Stage, number: int) -> None:
        assert stage.images is not None
        trained.append((digests(stage.images), digests(stage.replay) if stage.replay is not None else set()))
        run(trainer, stage, number)

    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", watched)
    trained: list[tuple[set[bytes], set[bytes]]] = []
    config = Config.model_validate({**settings(per_class=9).model_dump(), "train": {"holdout": 0.3, "epochs": 1}})
    learner = Learner(config, backbone)
    learner.learn(tasks[0])
    learner.learn(tasks[1])
    kept, replayed = trained[1]
    held = digests(labelled(tasks[1])) - kept
    assert held
    assert kept < replayed
    assert not held & replayed
    assert learner.memory.images is not None
    assert held < digests(learner.memory.images)  # in the end they are remembered like the others
    resumed = Learner(config, backbone)
    for number, task in enumerate(tasks[:2]):
        resumed.remember(labelled(task), number)
    assert resumed.memory.images is not None
    assert digests(resumed.memory.images) == digests(learner.memory.images)
