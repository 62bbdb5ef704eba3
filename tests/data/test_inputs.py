"""Images that users bring in folders and archives: zips of other systems, links, one class alone."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from promptcl.data.inputs import labelled


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
