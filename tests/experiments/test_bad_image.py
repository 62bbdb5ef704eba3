"""What is wrong with data is said before anything is learned of them, all of it at once."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY_VIT, call, good, make_config, timeless, write_folders
from PIL import Image

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


def test_all_bad_images_are_named_before_anything_is_learned(data: Path, tmp_path: Path) -> None:
    """Of training and of test images, of the first task and of later ones; nothing is written."""
    bad = [sorted((data / where).iterdir())[-1] for where in ("train/0", "train/3", "test/2")]
    good_bytes = [file.read_bytes() for file in bad]
    for file in bad:
        file.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError) as caught:
        run(data, tmp_path / "out")
    assert all(f"{file} does not decode as an image" in str(caught.value) for file in bad)
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []
    words = ("learn", tmp_path / "s", data / "train", *TINY_VIT, "--recipe", "grow-demo", "--check", data / "test")
    refused = call(*words)
    assert refused.exit_code == 2
    lines = refused.stderr.splitlines()
    assert [line.split(" does not decode")[0] for line in lines if "decode" in line] == [f"error: {f}" for f in bad]
    assert not (tmp_path / "s" / "learner.json").exists()
    for file, content in zip(bad, good_bytes, strict=True):
        file.write_bytes(content)
    assert "4 new classes" in good(*words)
    bad[2].write_bytes(b"")
    bad[0].write_bytes(b"")
    assert call("evaluate", tmp_path / "s", data / "test").stderr.count("does not decode as an image") == 1
    shutil.copytree(data / "train" / "0", tmp_path / "more" / "0")
    refused = call("learn", tmp_path / "s", tmp_path / "more")  # a store that is there stays as it is
    assert refused.exit_code == 2
    assert Learner.load(tmp_path / "s").classes == list("0123")


def test_a_class_called_unknown_is_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (data / part / "3").rename(data / part / "unknown")  # in the second task
    with pytest.raises(UserError, match="the class name 'unknown' is kept for images of no class"):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_what_the_decoder_remarks_is_a_line_with_the_file(
    data: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + struct.pack("<HHII", 0x010F, 2, 4096, 90000) + b"\0\0\0"
    file = sorted((data / "train" / "1").iterdir())[0]
    with Image.open(file) as image:
        image.convert("RGB").save(file.with_suffix(".jpg"), exif=exif)
    said = call("learn", tmp_path / "s", data / "train", *TINY_VIT, "--recipe", "grow-demo", "--quiet")
    assert said.exit_code == 0, said.stderr
    assert [line for line in said.stderr.splitlines() if file.stem in line and line.startswith("note: ")]
    assert "Warning" not in said.stderr
    assert not recwarn.list


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
