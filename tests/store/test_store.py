"""A learner's folder: saved and loaded bit for bit, and every reason to refuse one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import ENVIRONMENT, REMEMBERS, make_config, rewrite

from promptcl import store
from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.recipes.registry import available


@pytest.fixture(scope="module")
def saved(backbone: Backbone, digits: list[ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that knows two digits; not to be written to."""
    folder = tmp_path_factory.mktemp("saved") / "store"
    learner = Learner(make_config(), backbone)
    learner.notes["threshold"] = 0.25
    learner.learn(digits[0], name="zero and one")
    learner.save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(saved, tmp_path / "store")
    return tmp_path / "store"


def logits(learner: Learner, images: ImageSet) -> torch.Tensor:
    return learner.logits(images, torch.zeros(len(images), dtype=torch.long))


def refused(folder: Path) -> bool:
    try:
        store.load(folder)
    except UserError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", available("methods"))
def test_every_method_comes_back_bit_for_bit_and_learns_on(
    name: str, backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    came_back_and_learned_on({"name": name}, backbone, digits, tmp_path)


def test_a_head_of_random_numbers_comes_back_too(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """New rows of the head are drawn: which ones must not depend on when the learner was saved."""
    came_back_and_learned_on({"name": "l2p", "head_init": "uniform"}, backbone, digits, tmp_path)


def came_back_and_learned_on(
    method: dict[str, Any], backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    config = make_config(method=method, **REMEMBERS.get(method["name"], {}))
    whole = Learner(config, backbone)
    for images in digits[:3]:
        whole.learn(images)
    parts = Learner(config, backbone)
    parts.save(tmp_path)
    for images in digits[:3]:
        parts = Learner.load(tmp_path, backbone=backbone)
        parts.learn(images)
        parts.save(tmp_path)
    parts = Learner.load(tmp_path, backbone=backbone)
    assert parts.classes == whole.classes == ["0", "1", "2", "3", "4", "5"]
    assert all(torch.equal(parts.method.state_dict()[k], v) for k, v in whole.method.state_dict().items())
    assert torch.equal(logits(parts, digits[1]), logits(whole, digits[1]))
    assert parts.trained_parameters() == whole.trained_parameters()


@pytest.mark.slow
def test_another_process_learns_the_same(folder: Path, digits: list[ImageSet], backbone: Backbone) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from promptcl import store; from promptcl.data import load_split\n"
        "from promptcl.learner import Learner; from promptcl.data import class_incremental\n"
        "with store.lock(Path(sys.argv[1])):\n"
        "    learner = Learner.load(sys.argv[1])\n"
        "    tasks = class_incremental(load_split(learner.config.data), 5, 'official', 0)\n"
        "    learner.learn(tasks[1].train, name='two and three', checkpoint=sys.argv[1])\n"
        "    learner.save(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=True, env=ENVIRONMENT)
    whole = Learner(make_config(), backbone)
    whole.learn(digits[0])
    whole.learn(digits[1])
    parts = Learner.load(folder, backbone=backbone)
    assert torch.equal(logits(parts, digits[0]), logits(whole, digits[0]))
    assert [record.name for record in parts.history] == ["zero and one", "two and three"]
    assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == [".lock", "learner.json", "state"]


def test_what_a_store_says(folder: Path, digits: list[ImageSet]) -> None:
    document = json.loads((folder / "learner.json").read_text())
    assert document["format"] == 2
    assert document["classes"] == ["0", "1"]
    assert document["notes"] == {"threshold": 0.25}
    assert document["config"]["method"]["key_init"] == "uniform"  # resolved: defaults are written out
    (task,) = document["tasks"]
    assert task["name"] == "zero and one"
    assert task["when"].endswith("+00:00")
    assert task["images"] == {"0": 8, "1": 8}
    assert task["seconds"] > 0
    assert task["sha256"] == digits[0].sha256()
    assert document["backbone"]["name"] == "test_vit"
    assert len(document["backbone"]["sha256"]) == 64
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000


@pytest.mark.slow
def test_no_single_damaged_bit_passes(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        whole = path.read_bytes()
        step = max(1, len(whole) // 400)
        for position in [*range(0, len(whole), step), *range(0, 120), len(whole) - 1]:
            data = bytearray(whole)
            data[position] ^= 1 << (position % 8)
            path.write_bytes(data)
            assert refused(folder), f"bit {position % 8} of byte {position} of {path.name} passes"
        path.write_bytes(whole)
    store.load(folder)


@pytest.mark.parametrize("name", ["learner.json", "state"])
def test_no_cut_passes(folder: Path, name: str) -> None:
    path = next(folder.glob(f"{name}*"))
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 2]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged"):
            store.load(folder)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="damaged"):
        store.load(folder)


def test_missing_files_and_things_that_are_no_store(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(store.Absent, match=r"absent does not exist; expected the folder of a promptcl store"):
        Learner.load(tmp_path / "absent")
    with pytest.raises(store.Absent, match=r"expected a folder with learner\.json"):
        Learner.load(folder / "learner.json")
    state = next(folder.glob("state-*"))
    state.unlink()
    with pytest.raises(UserError, match=f"its file {state.name} is missing"):
        Learner.load(folder)
    state.mkdir()
    with pytest.raises(UserError, match=r"damaged|cannot be read"):
        Learner.load(folder)
    (folder / "learner.json").unlink()
    (folder / "learner.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        Learner.load(folder)


def test_a_newer_format_asks_for_a_newer_promptcl(folder: Path) -> None:
    rewrite(folder, format=3, something="new")
    with pytest.raises(UserError, match="has format 3, this promptcl reads up to 2: install a newer promptcl"):
        Learner.load(folder)


def test_another_backbone_is_refused(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({k: v + 1e-3 for k, v in backbone.vit.state_dict().items()}, other)
    with pytest.raises(UserError, match=rf"learned with backbone test_vit sha256 .*weights={other} has sha256"):
        Learner.load(folder, [f"backbone.weights={other}"])
    with pytest.raises(UserError, match="there is no file"):
        Learner.load(folder, ["backbone.weights=gone.safetensors"])


def test_weights_are_found_from_elsewhere(
    backbone: Backbone, digits: list[ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    safetensors.torch.save_file(backbone.vit.state_dict(), "vit.safetensors")
    config = make_config(backbone={"weights": "vit.safetensors"})
    learner = Learner(config)
    learner.learn(digits[0])
    learner.save("../store")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(Learner.load("store"), digits[0]), logits(learner, digits[0]))
    Path("here/vit.safetensors").rename("moved.safetensors")
    with pytest.raises(UserError, match=r"there is no file .*here/vit\.safetensors"):
        Learner.load("store")
    assert Learner.load("store", ["backbone.weights=moved.safetensors"]).classes == ["0", "1"]
    shutil.copy("moved.safetensors", "store/vit.safetensors")  # a store that travels with its weights
    Path("store").rename("elsewhere")
    assert Learner.load("elsewhere").classes == ["0", "1"]


def test_settings_that_may_change_and_those_that_may_not(folder: Path, backbone: Backbone) -> None:
    learner = Learner.load(folder, ["train.epochs=7", "device=cpu"], backbone)
    assert learner.config.train.epochs == 7
    for text in ("method.pool_size=9", "method.name=ncm", "seed=3", "backbone.name=vit_tiny_patch16_224", "tasks=3"):
        with pytest.raises(UserError, match="of a learner cannot change"):
            Learner.load(folder, [text], backbone)
    with pytest.raises(UserError, match=r"did you mean train\.epochs"):
        Learner.load(folder, ["train.epoch=1"], backbone)


def test_a_method_of_ones_own_needs_trust(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nfrom promptcl.methods.l2p import Model\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = store.load(folder).config.model_dump(mode="json")
    rewrite(folder, config={**config, "method": {**config["method"], "name": "mine.own"}})
    with pytest.raises(UserError, match=r"method\.name=mine\.own is code outside promptcl"):
        Learner.load(folder)
    assert not (tmp_path / "mine" / "ran").exists()
    assert Learner.load(folder, trust=True).classes == ["0", "1"]
    rewrite(folder, config={**config, "method": {**config["method"], "name": "mine.absent"}})
    with pytest.raises(UserError, match=r"mine\.absent cannot be used"):
        Learner.load(folder, trust=True)
    for name in ("../l2p", "_base", "__init__", "os"):
        rewrite(folder, config={**config, "method": {**config["method"], "name": name}})
        with pytest.raises(UserError, match="not one of the methods"):
            Learner.load(folder)


def test_names_in_any_script(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    names = ["日本 🦊", "a/b\\c"]
    images = ImageSet(digits[0]._source, names, digits[0].labels, digits[0]._rows)
    learner = Learner(make_config(), backbone)
    learner.learn(images)
    learner.save(tmp_path / "ünï")
    assert Learner.load(tmp_path / "ünï", backbone=backbone).classes == names
    broken = ImageSet(
        digits[0]._source, ["ok", "\udcff"], digits[0].labels, digits[0]._rows
    )  # a file name of raw bytes
    with pytest.raises(UserError, match=r"class name '\\udcff' cannot be learned"):
        learner.learn(broken)
    learner.save(tmp_path / "ünï")  # refused before anything changed
