"""Stores in odd states: what lies in them beside the learner, what was forged, what was begun on another machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import SMALL, TINY_VIT, call, good, rewrite
from PIL import Image

from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config

QUICK = [*SMALL, "data.augment=none", "data.cache_mb=1"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for name, grey in (("cup/a.png", 0), ("cup/b.png", 9), ("plate/c.png", 200), ("plate/d.png", 255)):
        file = tmp_path / "monday" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), grey).save(file)
    good("learn", tmp_path / "shop", tmp_path / "monday", *QUICK)
    return tmp_path / "shop"


@pytest.mark.slow
def test_an_export_into_the_store_does_it_no_harm(shop: Path) -> None:
    good("export", shop, shop / "learner.pt2")
    assert Learner.load(shop).classes == ["cup", "plate"]
    assert (shop / "learner.pt2.json").is_file()


def test_the_same_line_goes_on_where_precision_is_the_machines_choice(tmp_path: Path, shop: Path) -> None:
    settings = [*QUICK, "backbone.precision=auto"]
    Learner(load_config("grow", settings)).save(tmp_path / "begun")  # as `learn` leaves it when it is killed
    good("learn", tmp_path / "begun", tmp_path / "monday", *settings)


def test_info_says_what_takes_the_space_of_a_large_learner(tmp_path: Path, shop: Path) -> None:
    assert "of that" not in good("info", shop)
    large = ["method.name=l2p", "method.pool_size=800", "method.top_k=1", "method.prompt_length=60", *TINY_VIT]
    Learner(load_config("demo", large)).save(tmp_path / "large")
    assert re.search(
        r"^size +12\.\d+ MB without the backbone\nof that +pool 12\.\d MB", good("info", tmp_path / "large"), re.M
    )


def test_forged_stores_are_shown_without_harm(shop: Path) -> None:
    rewrite(shop, backbone={"name": "\x1b[31mred"})
    assert "\x1b[31m" not in good("info", shop)
    rewrite(shop, notes={"calibration": "x"})
    done = call("info", shop)
    assert done.exit_code == 2
    assert "no valid calibration" in " ".join(done.stderr.split())
