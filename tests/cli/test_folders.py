"""What the commands say of the folders that they are given: what was left out, a wrong level, one class alone."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from helpers import SMALL, call, good, grey, make_config, run_quietly


@pytest.fixture
def mixed(folders: Path, tmp_path: Path) -> Path:
    """Test digits with a file of another kind."""
    shutil.copytree(folders / "test", tmp_path / "mixed")
    (tmp_path / "mixed" / "0" / "a.jp2").write_bytes(b"x")
    return tmp_path / "mixed"


@pytest.mark.parametrize("words", [["evaluate"], ["predict"], ["evaluate", "--json"], ["predict", "--json"]])
def test_images_left_out_are_said(words: list[str], store: Path, mixed: Path) -> None:
    result = call(words[0], store, mixed, *words[1:])
    assert result.exit_code == 0
    assert f"note: 1 file in {mixed} left out: 1 .jp2\n" in result.stderr
    if len(words) > 1:
        json.loads(result.stdout)


def test_an_accuracy_of_one_class_comes_with_a_warning(store: Path, folders: Path, mixed: Path) -> None:
    for name in "1234":
        shutil.rmtree(mixed / name)
    result = call("evaluate", store, mixed)
    assert "warning: all these images are of one class, '0': the accuracy says nothing of the others" in result.stderr
    shop = mixed.parent / "shop"
    result = call("learn", shop, mixed, *SMALL, "--recipe", "grow-demo", "--quiet", "--check", mixed)
    assert f"note: 1 file in {mixed} left out: 1 .jp2\n" in result.stderr
    assert "warning: the only class that was learned is '0', so every answer is that" in result.stderr
    assert "100.0 %" in result.stdout
    result = call("evaluate", shop, mixed)
    assert result.stdout.endswith("100.0 % of 10 images\n")
    assert "warning: the only class that was learned is '0', so every answer is that" in result.stderr


def test_learn_refuses_splits(store: Path, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "first", tmp_path / "brains" / "Training")
    shutil.copytree(folders / "test", tmp_path / "brains" / "Testing")
    for verb in ("learn", "evaluate"):
        result = call(verb, store, tmp_path / "brains")
        assert result.exit_code == 2
        assert f"holds Testing, Training and no classes; give {tmp_path}/brains/Training, or one" in result.stderr


def test_an_accent_may_be_typed_in_both_forms(folders: Path, tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "Café")
    for form, digit in ((nfd, "0"), ("b", "1"), ("c", "2")):
        shutil.copytree(folders / "first" / digit, tmp_path / "in" / form)
    shop = tmp_path / "shop"
    good("learn", shop, tmp_path / "in", *SMALL, "--recipe", "grow-demo", "--quiet")
    assert "classes   3: Café, b, c" in good("info", shop)
    good("rename", shop, nfd, unicodedata.normalize("NFD", "Bär"))
    good("forget", shop, unicodedata.normalize("NFC", "Bär"))
    assert "classes   2: b, c" in good("info", shop)


def test_a_run_records_what_was_left_out(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("cup", "plate"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / "set" / part / name / f"{i}.png").write_bytes(grey(9 * i))
    (tmp_path / "set" / "train" / "cup" / "a.jp2").write_bytes(b"x")
    settings = {"method": {"name": "ncm"}, "tasks": 1, "data": {"name": "folder", "root": str(tmp_path / "set")}}
    root = tmp_path / "set"
    notes = [
        f"{root} has no folder test: its folder val takes the place of the test images",
        f"1 file in {root} left out: 1 .jp2",
    ]
    assert run_quietly(make_config(**settings), tmp_path / "run")["warnings"] == notes
    for part in ("train", "val"):
        shutil.rmtree(root / part / "plate")
    *_, last = run_quietly(make_config(**settings), tmp_path / "alone")["warnings"]
    assert last == "the only class that was learned is 'cup', so every answer is that: an accuracy says nothing"
