"""The default of `learn` can be mended at the command line: it becomes what learning it so from the start gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import TINY_VIT, digit_tasks, good, write_folders

from promptcl.data.images import ImageSet, concat
from promptcl.learner.learner import Learner

# Each image passes the ViT alone: what else is in a batch moves its last bits.
SETTINGS = [*TINY_VIT, "--recipe", "grow-demo", "eval.batch_size=1"]


@pytest.fixture(scope="module")
def tasks() -> list[ImageSet]:
    """Digits in pairs, 20 a class: enough right answers for a threshold of `unknown`."""
    return digit_tasks(20)


def learned(days: Path, *folders: str) -> Path:
    """The learner beside the folders, after it has learned some of them in processes that load and save it."""
    for folder in folders:
        made = [] if (days / "shop").exists() else SETTINGS
        good("learn", days / "shop", days / folder, *made, "--quiet")
    return days / "shop"


def move(images: list[Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for image in images:
        image.rename(folder / f"from-{image.parent.name}-{image.name}")


def forgotten(days: Path) -> None:
    for folder in ("monday/fork", "tuesday/fork", "tuesday/spoon"):
        shutil.rmtree(days / folder)


def undone(days: Path) -> None:
    shutil.rmtree(days / "tuesday")


def joined(days: Path) -> None:
    for day in ("monday", "tuesday"):
        move(sorted((days / day / "fork").iterdir()), days / day / "cup")
        (days / day / "fork").rmdir()


def corrected(days: Path) -> None:
    move([days / "monday" / "cup" / "0001.png", days / "monday" / "cup" / "0004.png"], days / "monday" / "fork")
    move(sorted((days / "tuesday" / "knife").iterdir()), days / "tuesday" / "spoon")
    (days / "tuesday" / "knife").rmdir()


# What is said, word by word, and what the folders are like had it been so from the start.
MENDED: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    "forget": (["forget S fork spoon"], forgotten),
    "undo": (["undo S"], undone),
    "join": (["rename S fork cup"], joined),
    "correct": (
        [
            "correct S monday/cup/0001.png monday/cup/0004.png --class fork",
            "correct S tuesday/knife --class spoon",
        ],
        corrected,
    ),
}


def write_days(root: Path, tasks: list[ImageSet]) -> Path:
    """Folders `monday`: cups and forks; `tuesday`: knives and spoons and a fork; `wednesday`: bowls and pots."""
    late = tasks[0].of_classes(["1"]).select([19]).renamed(["fork"])
    write_folders(tasks[0].select(range(39)).renamed(["cup", "fork"]), root / "monday")
    write_folders(concat([late, tasks[1].renamed(["knife", "spoon"])]), root / "tuesday")
    write_folders(tasks[2].renamed(["bowl", "pot"]), root / "wednesday")
    return root


def assert_alike(one: Learner, other: Learner) -> None:
    assert one.classes == other.classes
    assert [task.images for task in one.history] == [task.images for task in other.history]
    ours, theirs = one.method.state_dict(), other.method.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ("ridge.weight_KD", "ridge.bias_K"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
    assert sorted(ours["rows.labels_N"].tolist()) == sorted(theirs["rows.labels_N"].tolist())
    assert one.ledger.names(one.classes) == other.ledger.names(other.classes)
    assert one.calibration.images == other.calibration.images
    calibrations = [one.calibration.model_dump(), other.calibration.model_dump()]
    assert calibrations[0]["threshold"] is not None
    assert calibrations[0] == pytest.approx(calibrations[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("change", MENDED)
def test_it_becomes_what_it_would_have_been(change: str, tasks: list[ImageSet], tmp_path: Path) -> None:
    sentences, otherwise = MENDED[change]
    days, never = write_days(tmp_path / "days", tasks), write_days(tmp_path / "never", tasks)
    shop = learned(days, "monday", "tuesday")
    weights_KD = Learner.load(shop).method.state_dict()["ridge.weight_KD"]
    for sentence in sentences:
        good(*(str(days / word) if "/" in word else str(shop) if word == "S" else word for word in sentence.split()))
    otherwise(never)
    learned(never, *(day for day in ("monday", "tuesday") if (never / day).exists()))
    mended = Learner.load(shop)
    assert_alike(mended, Learner.load(never / "shop"))
    assert not torch.equal(mended.method.state_dict()["ridge.weight_KD"], weights_KD[: len(mended.classes)])
    for root in (days, never):  # and it goes on as that one does
        learned(root, "wednesday")
    assert_alike(Learner.load(shop), Learner.load(never / "shop"))


@pytest.mark.slow
def test_a_class_forgotten_may_be_learned_again(tasks: list[ImageSet], tmp_path: Path) -> None:
    days = write_days(tmp_path, tasks)
    shop = learned(days, "monday", "tuesday")
    before = Learner.load(shop).method.state_dict()
    assert good("forget", shop, "knife", "spoon") == (
        f"forgot knife, spoon (40 images)\n{shop}: 2 classes: cup, fork\n"
    )
    said = good("learn", shop, days / "tuesday", "--quiet")
    assert said.startswith("learned 40 images; 1 was learned before")
    after = Learner.load(shop).method.state_dict()
    torch.testing.assert_close(after["ridge.weight_KD"], before["ridge.weight_KD"], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_with_more_images_than_rows_nothing_can_be_mended(tasks: list[ImageSet], tmp_path: Path) -> None:
    days = write_days(tmp_path, tasks)
    good("learn", days / "shop", days / "monday", *SETTINGS, "method.rows=50", "--quiet")
    assert Learner.load(days / "shop").method.mendable
    learned(days, "tuesday")
    learner = Learner.load(days / "shop")
    assert not learner.method.mendable
    assert learner.method.state_dict()["ridge.count_K.value"].tolist() == [20, 20, 20, 20]
    whole = Learner.load(learned(write_days(tmp_path / "whole", tasks), "monday", "tuesday"))
    weights = [one.method.state_dict()["ridge.weight_KD"] for one in (learner, whole)]
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-9)  # sums forget digits that rows keep
