"""Images that users bring: folders and archives, links, one class alone; labels of any type."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptcl.data.images import ArraySource, ImageSet, concat
from promptcl.data.inputs import labelled
from promptcl.errors import UserError


def write_grey(file: Path, grey: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(file)


def packed(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


def test_one_class_with_a_folder_in_it_is_one_class_in_an_archive_too(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "2024/c.png"):
        write_grey(tmp_path / "in" / "cup" / name)
    for where in (tmp_path / "in", packed(tmp_path / "in", tmp_path / "cups.zip")):
        images = labelled(where)
        assert (images.classes, len(images)) == (("cup",), 3)


@pytest.mark.parametrize("around", ["", "shop/"])
def test_a_zip_made_on_a_mac(tmp_path: Path, around: str) -> None:
    for name in ("cup/a.png", "plate/b.png"):
        write_grey(tmp_path / "in" / around / name)
        other = tmp_path / "in" / "__MACOSX" / around / name
        other.parent.mkdir(parents=True, exist_ok=True)
        other.with_name(f"._{other.name}").write_bytes(b"not an image")
    assert labelled(packed(tmp_path / "in", tmp_path / "mac.zip")).classes == ("cup", "plate")


def test_links_that_lead_back_do_not_multiply_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_grey(tmp_path / "cat" / name)
    for name in ("again", "and again"):
        os.symlink(".", tmp_path / "cat" / name)
    assert len(labelled(tmp_path)) == 2


FOUR = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["cup", "7", "cup", "a b"], ["cup", "7", "cup", "a b"]),
        ([3, np.int64(3), np.uint8(10), torch.tensor(2)], ["3", "3", "10", "2"]),
        (np.array([3.0, 2.0, 3.0, 2.0]), ["3", "2", "3", "2"]),
        (np.array([1, 0, 1, 0]), ["1", "0", "1", "0"]),
        (torch.tensor([1, 0, 1, 0], dtype=torch.uint8), ["1", "0", "1", "0"]),
        (np.array(["x", "y", "x", "y"]), ["x", "y", "x", "y"]),
        ((np.str_("x"), "y", b"z", np.array("x")), ["x", "y", "z", "x"]),
        (iter(["Cafe\u0301", "Café", "x", "x"]), ["Café", "Café", "x", "x"]),
        (np.array(["x", 5, "y", None])[[0, 1, 2, 0]], ["x", "5", "y", "x"]),
    ],
)
def test_labels_of_any_type(labels: Any, names: list[str]) -> None:
    found = labelled(FOUR, labels)
    assert found.classes == tuple(sorted(set(names)))
    assert [found.classes[k] for k in found.labels] == names
    again = labelled(found, ["a", "b", "a", "b"])  # labels of a set that has some count too
    assert again.classes == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, "b", "c"], r"labels\[1\] is None; give each image the name of a class, or leave that image out"),
        (["a", float("nan"), "b", "c"], r"labels\[1\] is nan; give each"),
        (np.array([0, 1, np.nan, 1]), r"labels\[2\] is nan"),
        ([torch.tensor(float("nan")), 1, 1, 1], r"labels\[0\] is nan; give each"),
        (np.eye(4), r"labels has the shape \(4, 4\); .* write labels.argmax\(1\)"),
        (np.zeros((4, 1), int), r"labels has the shape \(4, 1\); .* write labels.reshape\(-1\)"),
        (torch.eye(4), r"labels has the shape \(4, 4\)"),
        (
            [[0, 1], [1, 0], [0, 1], [1, 0]],
            r"labels\[0\] is a row of 2; .* write \[list\(row\).index\(max",
        ),
        ([np.array([1, 0])] * 4, r"labels\[0\] is a row of 2"),
        ([torch.tensor([3])] * 4, r"labels\[0\] is a row of 1; .* write \[row\[0\] for row in labels\]"),
        ([1.5, 1, 1, 1], r"labels\[0\] is 1.5 \(float\); expected the name of a class or a whole number"),
        (["", "a", "b", "c"], r"labels\[0\] is an empty text"),
        ("abcd", r"labels='abcd' is one text; give a list with one class name for each image"),
        ({"a", "b", "c", "d"}, r"labels is a set; give a list"),
        (4, r"labels is a int; give a list"),
        (["a", "b"], "4 images came with 2 labels"),
    ],
)
def test_labels_that_name_no_class_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        labelled(FOUR, labels)


def test_every_set_has_one_spelling_of_a_name() -> None:
    images = ImageSet.from_arrays(FOUR, ["Cafe\u0301", "x", "Café", "x"])
    assert (images.classes, images.labels.tolist()) == (("Café", "x"), [0, 1, 0, 1])
    both = ImageSet(ArraySource(FOUR, "here"), ["Cafe\u0301", "x", "Café"], [0, 1, 2, 1])
    assert (both.classes, both.labels.tolist()) == (("Café", "x"), [0, 1, 0, 1])
    assert len(both.of_classes(["Cafe\u0301"])) == 2
    assert both.renamed(["e\u0301", "y"]).classes == ("é", "y")
    joined = concat([both, images.renamed(["Cafe\u0301", "z"])])
    assert joined.classes == ("Café", "x", "z")
