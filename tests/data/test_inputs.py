"""What users bring that is not quite what was expected: zips of other systems, links, odd names, forged stores."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_store import rewrite
from typer.testing import CliRunner

from promptcl.cli.main import app
from promptcl.data.inputs import labelled
from promptcl.errors import UserError
from promptcl.learner.calibration import hold_out
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config

TINY = ["backbone.name=test_vit", "backbone.weights=random", "backbone.image_size=32"]
QUICK = [*TINY, "train.epochs=1", "train.min_steps=1", "data.augment=none", "data.cache_mb=1"]


def picture(file: Path, grey: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(file)


def packed(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


def test_one_class_with_a_folder_in_it_is_one_class_in_an_archive_too(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "2024/c.png"):
        picture(tmp_path / "in" / "cup" / name)
    for where in (tmp_path / "in", packed(tmp_path / "in", tmp_path / "cups.zip")):
        images = labelled(where)
        assert (images.classes, len(images)) == (("cup",), 3)


@pytest.mark.parametrize("around", ["", "shop/"])
def test_a_zip_made_on_a_mac(tmp_path: Path, around: str) -> None:
    for name in ("cup/a.png", "plate/b.png"):
        picture(tmp_path / "in" / around / name)
        other = tmp_path / "in" / "__MACOSX" / around / name
        other.parent.mkdir(parents=True, exist_ok=True)
        other.with_name(f"._{other.name}").write_bytes(b"not a picture")
    assert labelled(packed(tmp_path / "in", tmp_path / "mac.zip")).classes == ("cup", "plate")


def test_links_that_lead_back_do_not_multiply_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "cat" / name)
    for name in ("again", "and again"):
        os.symlink(".", tmp_path / "cat" / name)
    assert len(labelled(tmp_path)) == 2


def test_something_is_left_to_train_on() -> None:
    images = labelled([np.zeros((8, 8, 3), np.uint8)] * 7, ["a"] * 3 + ["b"] * 4)
    kept, held = hold_out(images, 0.9, torch.Generator())
    assert [np.bincount(part.labels).tolist() for part in (kept, held)] == [[1, 1], [2, 3]]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for name, grey in (("cup/a.png", 0), ("cup/b.png", 9), ("plate/c.png", 200), ("plate/d.png", 255)):
        picture(tmp_path / "monday" / name, grey)
    words = ["learn", str(tmp_path / "shop"), str(tmp_path / "monday"), *QUICK]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return tmp_path / "shop"


def test_an_export_into_the_store_does_it_no_harm(shop: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(shop), str(shop / "learner.pt2")])
    assert done.exit_code == 0, done.output
    assert Learner.load(shop).classes == ["cup", "plate"]
    assert (shop / "learner.pt2.json").is_file()


def test_the_same_line_goes_on_where_precision_is_the_machines_choice(tmp_path: Path, shop: Path) -> None:
    settings = [*QUICK, "backbone.precision=auto"]
    Learner(load_config("grow", settings)).save(tmp_path / "begun")  # as `learn` leaves it when it is killed
    words = ["learn", str(tmp_path / "begun"), str(tmp_path / "monday"), *settings]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


def test_forged_stores_are_shown_without_harm(shop: Path) -> None:
    rewrite(shop, backbone={"name": "\x1b[31mred"})
    done = CliRunner().invoke(app, ["info", str(shop)])
    assert done.exit_code == 0, done.output
    assert "\x1b[31m" not in done.output
    rewrite(shop, notes={"calibration": "x"})
    done = CliRunner().invoke(app, ["info", str(shop)])
    assert done.exit_code == 2
    assert "no valid calibration" in " ".join(done.stderr.split())


def test_class_names_that_cannot_be(tmp_path: Path) -> None:
    learner = Learner(load_config("grow", QUICK))
    for name in ("unknown", "\x1b[31mred"):
        with pytest.raises(UserError, match=r"another name|rename it"):
            learner.learn([np.zeros((8, 8, 3), np.uint8)] * 2, labels=[name, "b"])
