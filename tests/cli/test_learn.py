"""What `learn` and `predict` do when the images are not what one meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import SMALL, call

from promptcl.learner.learner import Learner


def test_a_check_that_would_see_nothing_is_refused(store: Path, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "s")
    shutil.copytree(folders / "test" / "4", tmp_path / "typo" / "zebra")
    shutil.copytree(folders / "test" / "1", tmp_path / "new" / "one")
    before = (tmp_path / "s" / "learner.json").read_bytes()
    refused = call("learn", tmp_path / "s", tmp_path / "new", "--check", tmp_path / "typo")
    assert refused.exit_code == 2
    assert "has none of the classes of this learner (0, 1, 2, 3, 4, and 1 more)" in refused.stderr
    shutil.copytree(folders / "test" / "1", tmp_path / "typo" / "one")
    refused = call("learn", tmp_path / "s", tmp_path / "new", "--check", tmp_path / "typo", "--max-drop", 1)
    assert refused.exit_code == 2
    assert "has none of the old classes" in refused.stderr
    assert call("learn", tmp_path / "s", tmp_path / "new", "--check", folders / "test", "--max-drop", -1).exit_code == 2
    assert (tmp_path / "s" / "learner.json").read_bytes() == before
    said = call("learn", tmp_path / "s", tmp_path / "new", "--check", tmp_path / "typo", "--quiet")
    assert said.exit_code == 0
    assert "left out of the check, because the learner does not know them: zebra" in said.stderr
    assert "all classes on " in said.stdout


@pytest.mark.parametrize(
    "wrong", [["--recipe", "grow-dem"], ["train.epocs=1"], ["backbone.weights=absent.pth"], ["device=tpu"]]
)
def test_a_mistake_in_the_first_task_leaves_nothing(wrong: list[str], folders: Path, tmp_path: Path) -> None:
    settings = [word for word in SMALL if word.split("=")[0] not in wrong[0]]
    assert call("learn", tmp_path / "shop", folders / "first", *settings, *wrong).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_files_is_no_store(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    refused = call("learn", tmp_path, folders / "first", *SMALL)
    assert refused.exit_code == 2
    assert "has other files in it ('thesis.tex') and no learner" in refused.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]
    refused = call("learn", tmp_path / "thesis.tex", folders / "first", *SMALL)
    assert "is a file; expected a folder" in refused.stderr


def test_one_bad_image_does_not_cost_the_other_answers(store: Path, folders: Path, tmp_path: Path) -> None:
    for name in ("a.png", "c\x1b[31m.png"):
        shutil.copy(next((folders / "test" / "3").iterdir()), tmp_path / name)
    (tmp_path / "b.jpg").write_text("no image")
    result = call("predict", store, tmp_path, "--threshold", 0)
    assert result.exit_code == 2
    assert "b.jpg" in result.stderr
    first, second = result.stdout.splitlines()
    assert "a.png: " in first
    assert "c\\x1b[31m.png: " in second
    assert first.split(": ")[1] == second.split(": ")[1]
    rows = json.loads(call("predict", store, tmp_path, "--json").stdout)
    answer = ["familiarity", "image", "label", "probability", "top"]
    assert [sorted(row) for row in rows] == [answer, ["error", "image"], answer]
    for wrong in (["--top", 0], ["--threshold", 2]):
        refused = call("predict", store, tmp_path, *wrong)
        assert refused.exit_code == 2
        assert refused.stderr.startswith(f"error: {wrong[0]} {wrong[1]}: expected ")
    assert "stdin, which is empty" in call("predict", store, "-", data=b"").stderr


def test_a_learner_may_be_kept_in_two_places(store: Path, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "s")
    learner = Learner.load(tmp_path / "s")
    learner.learn(folders / "second")
    learner.save(tmp_path / "backup")
    learner.save(tmp_path / "s")
    assert (tmp_path / "s" / "learner.json").read_bytes() == (tmp_path / "backup" / "learner.json").read_bytes()


def test_a_class_of_one_image_is_worth_a_word(store: Path, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "s")
    (tmp_path / "new" / "one").mkdir(parents=True)
    shutil.copy(next((folders / "test" / "1").iterdir()), tmp_path / "new" / "one")
    said = call("learn", tmp_path / "s", tmp_path / "new")
    assert said.exit_code == 0
    assert "note: few images: one (1); others are easily taken for them" in said.stderr
    alone = call("learn", tmp_path / "alone", tmp_path / "new", *SMALL).stderr
    assert "few images" not in alone
    assert "one image of each class" not in alone
    (tmp_path / "new" / "two").mkdir()
    shutil.copy(next((folders / "test" / "2").iterdir()), tmp_path / "new" / "two")
    both = call("learn", tmp_path / "both", tmp_path / "new", *SMALL).stderr
    assert "note: one image of each class: none could be left out" in both
