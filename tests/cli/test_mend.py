"""A life at the command line: folders that grow, names that look alike, mistakes undone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import call, good, make_config, write_folders

from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet
from promptcl.learner.learner import Learner


@pytest.fixture
def shop(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> Path:
    """An empty learner `shop` whose method can take images away, beside a folder `monday` of cups and forks."""
    Learner(make_config(method={"name": "tests.rows_method"}), backbone).save(tmp_path / "shop")
    write_folders(digits[0].renamed(["cup", "fork"]), tmp_path / "monday")
    return tmp_path / "shop"


def learned(shop: Path, folder: str = "monday", *words: object) -> str:
    return good("learn", shop, shop.parent / folder, "--trust", "--quiet", *words)


def test_of_a_folder_that_grew_only_the_new_image_is_learned(shop: Path, digits: list[ImageSet]) -> None:
    assert learned(shop) == f"learned 16 images\n2 new classes: cup, fork\n{shop}: 2 classes\n"
    before = (shop / "learner.json").read_bytes()
    said = "these very images were learned before: nothing to do (--again learns them once more)\n"
    assert learned(shop) == said
    assert (shop / "learner.json").read_bytes() == before
    write_folders(digits[1].of_classes(["2"]).select([0]).renamed(["cup"]), shop.parent / "more")
    (shop.parent / "more" / "cup" / "0000.png").rename(shop.parent / "monday" / "cup" / "new.png")
    said = "learned 1 image; 16 were learned before (--again learns them once more)\n"
    assert learned(shop) == f"{said}{shop}: 2 classes\n"
    assert learned(shop, "monday", "--again").startswith("learned 17 images\n")
    tasks = json.loads(good("info", shop, "--trust", "--json"))["tasks"]
    assert [task["images"] for task in tasks] == [{"cup": 8, "fork": 8}, {"cup": 1}, {"cup": 9, "fork": 8}]


def test_another_form_of_its_accents_is_no_new_class(shop: Path, digits: list[ImageSet]) -> None:
    write_folders(digits[0].renamed(["Caf\u00e9", "fork"]), shop.parent / "tuesday")
    learned(shop, "tuesday")
    image = next((shop.parent / "tuesday" / "fork").glob("*.png"))
    result = call("correct", shop, image, "--class", "Cafe\u0301", "--trust")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("moved 1 image to Caf\u00e9 (1 from fork)\n")


def test_what_is_left_out_is_said_even_quietly(shop: Path) -> None:
    monday = shop.parent / "monday"
    (monday / "cup" / "notes.txt").write_text("x")
    (monday / "stray.png").write_bytes(next((monday / "cup").glob("*.png")).read_bytes())
    (monday / ".hidden").write_text("x")
    shutil.copy(next((monday / "cup").glob("*.png")), monday / "cup" / "copy.png")
    result = call("learn", shop, monday, "--trust", "--quiet")
    assert result.stdout.startswith("learned 16 images\n")
    assert result.stderr.splitlines() == [
        f"note: 2 files in {monday} left out, being no image in a folder of its class: cup/notes.txt, stray.png",
        f"note: 1 image of {monday} there twice in a class; each is learned once",
    ]
    shutil.copytree(monday / "cup", shop.parent / "wrong" / "mug")
    result = call("learn", shop, shop.parent / "wrong", "--trust", "--quiet")
    assert result.exit_code == 0
    assert "left out 8 images learned before as another class: " in result.stderr
    assert "(cup, now mug), " in result.stderr
    assert result.stdout == "no image is left to learn: nothing to do (--again learns them once more)\n"


def test_the_same_image_in_two_classes_is_refused(shop: Path) -> None:
    monday = shop.parent / "monday"
    image = next((monday / "cup").glob("*.png"))
    shutil.copy(image, monday / "fork" / "again.png")
    result = call("learn", shop.parent / "new", monday)
    assert result.exit_code == 2
    assert f"{image} and {monday / 'fork' / 'again.png'} are the same image in two classes" in result.stderr
    assert not (shop.parent / "new").exists()


def test_names_that_look_alike_are_pointed_out_and_joined(shop: Path, digits: list[ImageSet]) -> None:
    learned(shop)
    write_folders(digits[1].renamed(["Cup", "c-u-p"]), shop.parent / "tuesday")
    result = call("learn", shop, shop.parent / "tuesday", "--trust", "--quiet")
    assert result.stdout.splitlines()[1] == "2 new classes: Cup, c-u-p"
    first, second = result.stderr.splitlines()
    assert first.startswith(
        "warning: the new class 'Cup' is spelled like 'cup'; if they are one, promptcl rename --trust "
    )
    assert first.endswith(" 'Cup' 'cup' joins them")
    assert "'c-u-p' is spelled like 'cup'" in second
    said = good("rename", shop, "Cup", "cup", "--trust")
    assert said.startswith("renamed Cup to cup (8 images), which was a class too: both are one now\n")
    good("rename", shop, "c-u-p", "knife", "--trust")
    assert Learner.load(shop, trust=True).classes == ["cup", "fork", "knife"]


@pytest.mark.slow
def test_forget_undo_and_correct(shop: Path, digits: list[ImageSet]) -> None:
    learned(shop)
    write_folders(digits[1].renamed(["knife", "spoon"]), shop.parent / "tuesday")
    learned(shop, "tuesday")
    assert good("forget", shop, "knife", "--trust") == (
        f"forgot knife (8 images)\n{shop}: 3 classes: cup, fork, spoon\n"
    )
    assert learned(shop, "tuesday").startswith("learned 8 images; 8 were learned before")
    said = good("undo", shop, "device=cpu", "--trust")
    assert said.startswith("undid tuesday (8 images), learned 20")
    assert said.endswith(f": knife\n{shop}: 3 classes: cup, fork, spoon\n")
    some = sorted((shop.parent / "monday" / "cup").glob("*.png"))[:2]
    folder = shop.parent / "monday" / "fork"
    assert good("correct", shop, *some, folder, shop.parent / "tuesday" / "knife", "--class", "fork", "--trust") == (
        "moved 2 images to fork (2 from cup)\nlearned 8 images as fork\n"
        f"8 images had been learned as fork before: nothing to change\n{shop}: 3 classes: cup, fork, spoon\n"
    )
    before = (shop / "learner.json").read_bytes()
    good("correct", shop, folder, "--class", "fork", "--trust")
    assert (shop / "learner.json").read_bytes() == before  # nothing to change, nothing written
    said = good("correct", shop, shop.parent / "tuesday" / "spoon", "--class", "fork", "--trust")
    assert "spoon: no image is left, so this is no class any more\n" in said
    about = json.loads(good("info", shop, "--json", "--trust"))
    assert [change["what"] for change in about["changes"]] == ["forget", "undo", "correct", "correct"]
    lines = [line.partition("  ")[2] for line in good("info", shop, "--trust").splitlines() if line.startswith("20")]
    assert sorted(lines)[0].startswith("correction: 8 images in ")
    assert {"forgot knife (8 images)", "undid tuesday (8 images)", "moved 2 images to fork"} <= set(lines)
    assert good("forget", shop, "cup", "fork", "--trust").endswith(": 0 classes; learn a folder of images\n")
    assert "2 new classes: cup, fork" in learned(shop)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["forget", "S", "0"], "method.name=ranpac has not kept what each image added, so this learner cannot"),
        (["undo", "S"], "cannot undo a task; methods that can, chosen when a learner is made, with method.rows"),
        (["rename", "S", "0", "1"], "cannot join two classes"),
        (["correct", "S", "F/0", "--class", "1"], "cannot move images to another class"),
        (["forget", "S", "9"], "class '9' was never learned"),
        (["forget", "S", "device=cpu"], "expected one or more classes"),
        (["forget", "S", "0", "device=cpu", "1"], "1: expected one or more classes first, then settings"),
        (["rename", "S", "0", "0"], "is called so already"),
        (["rename", "S", "0", "unknown"], "is kept for images of no class"),
        (["undo", "nowhere"], "nowhere does not exist; expected the folder of a promptcl store"),
        (["correct", "S", "nowhere.png", "--class", "0"], "nowhere.png: there is no such file"),
        (["correct", "S", "-", "--class", "0"], "reads no image from stdin"),
    ],
)
def test_refusals(trained_store: Path, folders: Path, words: list[str], message: str) -> None:
    """Of a learner that trains, which is all that most of them are about."""
    store = trained_store
    before = (store / "learner.json").read_bytes()
    places = {"S": str(store), "F/0": str(folders / "first" / "0")}
    result = call(*[places.get(word, word) for word in words])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert (store / "learner.json").read_bytes() == before


def test_a_pure_rename_needs_nothing_of_the_method(trained_store: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_store, tmp_path / "s")
    assert good("rename", tmp_path / "s", "0", "zero").startswith("renamed 0 to zero (20 images)\n")
    assert Learner.load(tmp_path / "s").classes == ["zero", "1", "2", "3", "4"]


def test_predict_takes_images_folders_and_settings(store: Path, folders: Path, tmp_path: Path) -> None:
    odd, other = tmp_path / "a=b.png", folders / "test" / "1" / "0010.png"
    shutil.copy(other, odd)
    words = [other, odd, folders / "test" / "3", "-", other]
    rows = json.loads(good("predict", store, *words, "device=cpu", "--json", data=odd.read_bytes()))
    assert [row["image"] for row in rows[:2]] == [str(other), str(odd)]
    assert [Path(row["image"]).parent.name for row in rows[2:12]] == ["3"] * 10
    assert [row["image"] for row in rows[12:]] == ["-", str(other)]
    found = np.array([row["probability"] for row in rows])
    assert np.allclose(found[[1, 12, 13]], found[0], atol=1e-5)
    for wrong, message in (
        (["-", "-"], "stdin can be read once"),
        ([other, "device=cpu", odd], "first, then settings"),
        (["device=cpu"], "before any settings"),
        ([other, tmp_path / "gone.png"], "there is no such file"),
    ):
        result = call("predict", store, *wrong)
        assert result.exit_code == 2
        assert message in result.stderr
