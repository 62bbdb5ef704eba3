"""An image that does not decode is met in the middle of a run: what is left behind goes on once it is mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY_VIT, call, good, make_config, timeless, write_folders

from promptcl import store
from promptcl.config.schema import Config, DataConfig
from promptcl.data.splits import load_split
from promptcl.errors import UserError
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.learner.learner import Learner


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four digits as a data set in folders."""
    split = load_split(DataConfig(name="mnist5k", train_per_class=10, test_per_class=4))
    for part, images in (("train", split.train), ("test", split.test)):
        write_folders(images.of_classes(list("0123")), tmp_path / "data" / part)
    return tmp_path / "data"


def config(data: Path) -> Config:
    settings = make_config(train={"epochs": 2, "checkpoint_steps": 1}).model_dump()
    return Config.model_validate({**settings, "data": {"name": "folder", "root": str(data)}})


def run(data: Path, out: Path, resume: bool = False) -> Any:
    return timeless(experiment.run(config(data), out, QuietUi(out, write=lambda line: None), resume))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["test/0", "test/3"])
def test_a_bad_test_image(where: str, data: Path, tmp_path: Path) -> None:
    """Met after a task was learned: mended, the run goes on and does not learn that again."""
    whole = run(data, tmp_path / "whole")
    bad = sorted((data / where).iterdir())[1]
    good_bytes = bad.read_bytes()
    bad.write_bytes(good_bytes[:60])
    with pytest.raises(UserError, match=f"{bad} does not decode as an image"):
        run(data, tmp_path / "out")
    bad.write_bytes(good_bytes)
    assert run(data, tmp_path / "out", resume=True) == whole


@pytest.mark.slow
def test_a_bad_training_image(data: Path, tmp_path: Path) -> None:
    """Met in the first task. Left are a whole, empty learner and a checkpoint of images that have changed since."""
    whole = run(data, tmp_path / "whole")
    bad = sorted((data / "train" / "0").iterdir())[-1]
    good_bytes = bad.read_bytes()
    bad.write_bytes(good_bytes[:60])
    out = tmp_path / "out"
    with pytest.raises(UserError, match=f"{bad} does not decode as an image"):
        run(data, out)
    assert store.load(out / "learner").classes == []
    assert not (out / "results.json").exists()
    with pytest.raises(UserError, match=f"{bad} does not decode as an image"):
        run(data, out, resume=True)
    bad.write_bytes(good_bytes)
    # A checkpoint was written before the bad image was met: it belongs to other images, and says so.
    with pytest.raises(UserError, match="with other images: repeat what was interrupted, or delete the folder"):
        run(data, out, resume=True)
    shutil.rmtree(out / "learner" / "checkpoint")
    assert run(data, out, resume=True) == whole


def test_a_bad_image_in_a_task(data: Path, tmp_path: Path) -> None:
    bad = sorted((data / "train" / "2").iterdir())[-1]
    good_bytes = bad.read_bytes()
    bad.write_bytes(good_bytes[:60])
    words = ("learn", tmp_path / "s", data / "train", *TINY_VIT, "--recipe", "grow-demo")
    refused = call(*words)
    assert refused.exit_code == 2
    assert "does not decode as an image" in " ".join(refused.stderr.split())
    assert Learner.load(tmp_path / "s").classes == []
    bad.write_bytes(good_bytes)
    assert "4 new classes" in good(*words)


def test_a_run_is_repeated_from_another_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    words = [*TINY_VIT, "method.name=ncm", "tasks=2", "data.name=folder", "--quiet"]
    good("train", "l2p", *words, "data.root=data", "--out", "first")
    monkeypatch.chdir(tmp_path / "elsewhere")
    good("train", tmp_path / "first" / "config.yaml", "--out", "second", "--quiet")
    first, second = (json.loads(p.read_text()) for p in (tmp_path / "first/results.json", Path("second/results.json")))
    assert timeless(first) == timeless(second)
    assert first["config"]["data"]["root"] == str(data)
    (tmp_path / "first" / "results.json").unlink()  # as if it had been killed before it wrote them
    good("train", "--resume", tmp_path / "first", "--quiet")
    assert timeless(json.loads((tmp_path / "first/results.json").read_text())) == timeless(first)
