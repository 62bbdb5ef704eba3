"""One reader of class folders: what is no class, what is left out and said, which level is opened, whose name it is."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from helpers import encoded, grey
from PIL import Image, features

from promptcl.config.schema import DataConfig
from promptcl.data import load_domains, load_split
from promptcl.data.inputs import labelled, unlabelled
from promptcl.errors import UserError

NFC = "Café crème"
NFD = unicodedata.normalize("NFD", NFC)
LEFT_BEHIND = [
    *("cup/.ipynb_checkpoints/0-checkpoint.png", "cup/._0.png", "__MACOSX/cup/._0.png", "cup/Thumbs.db", "DESKTOP.INI"),
    *("cup/@eaDir/0.png/thumb.jpg", "#recycle/a.png", "$RECYCLE.BIN/a.png", "System Volume Information/x.png"),
    *("lost+found/", ".git/logo/a.png", "CVS/Entries", "cup/CVS/Root", "cup/0.png:Zone.Identifier", "RECYCLER/x.txt"),
    *(".@__thumb/a.png", "cup/.AppleDouble/0.png", "Network Trash Folder/a.png", "__pycache__/a.pyc"),
]


def made(root: Path, names: Iterable[str]) -> Path:
    """A folder of images, all different, and of other files; names that end in `/` are folders."""
    for value, name in enumerate(names):
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(grey(value) if name.endswith((".png", ".jpg")) else b"x")
    return root


def images(*folders: str, n: int = 2) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(n)]


def split(root: Path) -> tuple[tuple[str, ...], int, int, tuple[str, ...]]:
    train, test = load_split(DataConfig(name="folder", root=str(root)))
    return train.classes, len(train), len(test), train.notes


@pytest.mark.parametrize("read", [labelled, unlabelled])
def test_what_systems_and_tools_leave_behind_is_no_image_and_no_class(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    root = made(tmp_path / "in", [*images("cup", "plate"), *LEFT_BEHIND])
    found = read(root)
    assert len(found) == 4  # type: ignore[arg-type]
    assert found.notes == ()  # type: ignore[attr-defined]
    both = made(tmp_path / "both", [f"{part}/{name}" for part in ("train", "test") for name in images("cup", "plate")])
    made(both / "train", LEFT_BEHIND)
    made(both, LEFT_BEHIND)
    assert split(both) == (("cup", "plate"), 4, 4, ())
    domains = made(tmp_path / "domains", images(*(f"{d}/{c}" for d in "ab" for c in ("cup", "plate")), n=5))
    made(domains / "a", LEFT_BEHIND)
    made(domains, [name for name in LEFT_BEHIND if not name.startswith("cup/")])
    parts = load_domains(DataConfig(name="domains", root=str(domains)))
    assert [(part.name, len(part.train), part.train.notes) for part in parts] == [("a", 8, ()), ("b", 8, ())]


def test_names_of_tools_may_be_classes(tmp_path: Path) -> None:
    assert labelled(made(tmp_path, images("CVS", "recycled"))).classes == ("CVS", "recycled")


def test_every_ending_of_an_image_is_read_or_counted(tmp_path: Path) -> None:
    kinds = {"jfif": "jpeg", "JPE": "jpeg", "ppm": "ppm", "pgm": "ppm", "pjpeg": "jpeg", "apng": "png"}
    if features.check("avif"):
        kinds["avif"] = "avif"
    made(tmp_path, images("cup", "plate"))
    for value, (ending, kind) in enumerate(kinds.items(), start=9):
        image = Image.new("L" if ending == "pgm" else "RGB", (8, 8), value if ending == "pgm" else (value, 0, 0))
        (tmp_path / "cup" / f"a.{ending}").write_bytes(encoded(image, kind))
    made(tmp_path / "plate", ["a.jp2", "b.JXL", "c.svg", "d.jp2", "deep/e.jp2", "notes.txt"])
    found = labelled(tmp_path)
    assert len(found) == 4 + len(kinds)
    assert len(found.images(range(len(found)))) == len(found)
    assert found.notes == (
        f"5 files in {tmp_path} left out: 3 .jp2, 1 .jxl, 1 .svg",
        f"1 file in {tmp_path} left out, being no image in a folder of its class: plate/notes.txt",
    )
    assert unlabelled(tmp_path).notes == found.notes[:1]


def test_photos_of_phones_are_read_with_the_extra(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="pillow-heif is in the extra heif, which dev brings")
    made(tmp_path, images("cup"))
    (tmp_path / "cup" / "a.HEIC").write_bytes(encoded(Image.new("RGB", (64, 64), (200, 30, 30)), "heif"))
    found = labelled(tmp_path)
    assert (len(found), found.notes) == (3, ())
    assert abs(int(found.image(2)[0, 9, 9]) - 200) < 4


def test_what_was_left_out_is_said_where_nothing_is_left(tmp_path: Path) -> None:
    made(tmp_path, [*images("cup"), "plate/a.jp2", "plate/b.jp2"])
    with pytest.raises(UserError, match=r"class 'plate' .* has no images; .* \(2 \.jp2 left out\)"):
        labelled(tmp_path)
    with pytest.raises(UserError, match=r"has no images in it; .* \(2 \.jp2 left out\)"):
        unlabelled(tmp_path / "plate")


def test_a_learner_and_a_run_among_the_images_are_skipped_and_named(tmp_path: Path) -> None:
    made(tmp_path, [*images("cup", "plate"), "shop/learner.json", "shop/a.png"])
    made(tmp_path / "runs" / "one", ["results.json", "config.yaml", "report-figures/a.png", "learner/learner.json"])
    found = labelled(tmp_path)
    assert (found.classes, len(found)) == (("cup", "plate"), 4)
    assert found.notes == (f"runs/one/, shop/ in {tmp_path} left out, being a learner or a run",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (images("Training/a", "Training/b", "Testing/a"), "holds Testing, Training and no classes; give .*/Training,"),
        (images("train/a", "valid/a", "extra"), "holds train, valid and no classes; give .*/train, or"),
        (
            images("train_images/a", "train_images/b", "more"),
            "holds train_images and .*; give .*/train_images, or give train_images another name",
        ),
        (images("Train set/a", "Test set/a"), "give .*/Train set, or one of the others .Test set."),
        (images("fruits-train/a", "fruits-test/a"), "give .*/fruits-train"),
        (
            images("seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a"),
            "give .*/seg_train/seg_train",
        ),
        (images("validation/a", "TEST/a"), "give .*/validation"),
        (images("train", "test"), "images lie directly in train; put them into folders"),
        (
            images("A/train/x", "A/test/x", "A/full/x", "B/train/x", "B/test/x"),
            "A holds test, train .* .*/A/train",
        ),
        (images("set/train/a", "set/val/a"), "set holds train, val and no classes; give .*/set/train"),
    ],
)
def test_splits_are_never_taken_for_classes(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        labelled(made(tmp_path, names))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (images("shop/a", "shop/b"), ("a", "b")),
        (images("one/two/a", "one/two/b"), ("a", "b")),
        (images("train", "cat"), ("cat", "train")),
        (images("valid", "invalid"), ("invalid", "valid")),
        (images("test tube", "latest"), ("latest", "test tube")),
        (images("cup/images"), ("cup",)),
        (images("cup/images", "plate/images"), ("cup", "plate")),
    ],
)
def test_wrappers_are_opened_and_classes_are_not(tmp_path: Path, names: list[str], classes: tuple[str, ...]) -> None:
    found = labelled(made(tmp_path, names))
    assert (found.classes, len(found), found.notes) == (classes, len(names), ())


def test_a_split_alone_is_opened_only_inside_itself(tmp_path: Path) -> None:
    for split in ("Training", "VALID", "test_images"):
        root = made(tmp_path / f"only {split}", images(f"{split}/a", f"{split}/b"))
        with pytest.raises(UserError, match=f"holds {split} and no classes; give .*/{split}$"):
            labelled(root)
        assert labelled(root / split).classes == ("a", "b")
    root = made(tmp_path / "twice", images("seg_train/seg_train/a", "seg_train/seg_train/b"))
    with pytest.raises(UserError, match=r"holds seg_train and no classes; give .*/seg_train/seg_train$"):
        labelled(root)
    assert (labelled(root / "seg_train").classes, labelled(root / "seg_train").notes) == (("a", "b"), ())


def test_a_level_that_may_be_wrong_is_said(tmp_path: Path) -> None:
    (note,) = labelled(made(tmp_path / "1", images("photo/a", "photo/b", "sketch/a", "sketch/b"))).notes
    assert "each of photo, sketch" in note
    assert note.endswith(
        "holds the same folders, a, b: if those are the classes, give " + str(tmp_path / "1" / "photo")
    )
    (note,) = labelled(made(tmp_path / "2", images("cup/2024"))).notes
    assert note == f"{tmp_path / '2' / 'cup'} was opened, which all images are in: the only class is '2024'"


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("Training", "Testing", None),
        ("a/seg_train/seg_train", "a/seg_test/seg_test", None),
        ("training", "evaluation", None),
        ("train", "val", "has no folder test: its folder val takes the place of the test images"),
        ("train", "valid", "its folder valid takes"),
        ("Train", "Validation set", "its folder Validation set takes"),
        ("fruits_train", "fruits_test", None),
    ],
)
def test_splits_may_be_called_as_people_call_them(tmp_path: Path, train: str, test: str, said: str | None) -> None:
    made(tmp_path, [*images(f"{train}/x", f"{train}/y", n=3), *images(f"{test}/x", f"{test}/y")])
    *counts, notes = split(tmp_path)
    assert counts == [("x", "y"), 6, 4]
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    made(root, [*images("train/n01/images", "train/n02/images", n=3), *images("test/images"), *images("val/images")])
    made(root, ["train/n01/n01_boxes.txt", "wnids.txt", "words.txt"])
    (root / "val" / "val_annotations.txt").write_text("0.png\tn02\t0\t0\t9\t9\n1.png\tn01\t0\t0\t9\t9\n")
    for where in (root, tmp_path):
        classes, train, test, (note,) = split(where)
        assert (classes, train, test) == (("n01", "n02"), 6, 2)
        assert "has no classes in its folder test: its folder val takes" in note
    found = labelled(root / "val")
    assert ([found.classes[k] for k in found.labels], found.notes) == (["n01", "n02"], ())
    assert found.name(0).endswith("val/images/1.png")
    (root / "val" / "val_annotations.txt").write_text("7.png\tn02\n")
    with pytest.raises(
        UserError, match=r"line 1 of .*val_annotations.txt is '7.png\\tn02'; expected the name of an image"
    ):
        labelled(root / "val")


def test_two_spellings_of_a_name_are_one_class(tmp_path: Path) -> None:
    made(tmp_path, images(f"train/{NFC}", "train/cup", f"test/{NFD}", "test/cup"))
    made(tmp_path, [f"train/{NFD}/9.png"])
    classes, train, test, notes = split(tmp_path)
    assert (classes, train, test, notes) == (tuple(sorted([NFC, "cup"])), 5, 4, ())
    assert labelled(tmp_path / "test").classes == tuple(sorted([NFC, "cup"]))
