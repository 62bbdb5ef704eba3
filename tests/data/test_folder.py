"""Folders and archives in ImageFolder layout."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import grey

from promptcl.config.schema import DataConfig
from promptcl.data.splits import Split, load_split
from promptcl.errors import UserError

SUFFIXES = ["", ".tar", ".tar.gz", ".tgz", ".zip"]


def files() -> dict[str, bytes]:
    """Two classes, one of them called `train`; three training images and one test image each, and clutter."""
    found = {"README.txt": b"hello", "train/notes.txt": b"loose", "train/cat/.DS_Store": b"", "train/cat/._2.png": b""}
    for k, name in enumerate(("cat", "train")):
        # sorted order is not the order of writing
        for value, file in ((2, "c.webp"), (0, "a.PNG"), (1, "b/deep.jpeg")):
            found[f"train/{name}/{file}"] = grey(100 * k + value * 10, file.rsplit(".")[-1].lower())
        found[f"test/{name}/x.bmp"] = grey(100 * k + 50, "bmp")
    return found


def make(root: Path, suffix: str, found: dict[str, bytes], top: str = "") -> DataConfig:
    """Write `found` as a folder or an archive; a name that ends in "/" is an empty folder."""
    place = root / f"set{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in found.items():
                archive.writestr(top + name, data)
    elif suffix:
        with tarfile.open(place, "w" if suffix == ".tar" else "w:gz") as tar:
            for name, data in found.items():
                info = tarfile.TarInfo(top + name)
                info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        for name, data in found.items():
            file = place / top / name
            (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                file.write_bytes(data)
    return DataConfig(name="folder", root=str(place))


def seen(split: Split) -> list[list[tuple[str, int]]]:
    """(class, grey level to the nearest ten) of each image."""
    return [
        [(part.classes[part.labels[i]], round(int(part.image(i)[1, 2, 2]), -1)) for i in range(len(part))]
        for part in split
    ]


@pytest.mark.parametrize("top", ["", "./", "photos/"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_folder_and_archives_read_alike(tmp_path: Path, suffix: str, top: str) -> None:
    config = make(tmp_path, suffix, files(), top)
    train = [("cat", 0), ("cat", 10), ("cat", 20), ("train", 100), ("train", 110), ("train", 120)]
    split = load_split(config)
    assert seen(split) == [train, [("cat", 50), ("train", 150)]]
    assert split.train.name(1).endswith("train/cat/b/deep.jpeg")
    assert split.train.name(1).startswith(str(config.root))
    first = load_split(config.model_copy(update={"train_per_class": 1}))
    assert seen(first)[0] == [("cat", 0), ("train", 100)]


@pytest.mark.parametrize("suffix", ["", ".tgz"])
def test_validation_needs_no_test_folder(tmp_path: Path, suffix: str) -> None:
    found = {name: data for name, data in files().items() if not name.startswith("test/")}
    config = make(tmp_path, suffix, found)
    split = load_split(config.model_copy(update={"validation_per_class": 1}))
    assert seen(split)[1] == [("cat", 20), ("train", 120)]
    assert len(split.train) == 4
    with pytest.raises(UserError, match="has no folder test;"):
        load_split(config)


@pytest.mark.parametrize("suffix", ["", ".tar", ".tgz", ".zip"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train/empty/": b""}, "class 'empty' has no training images"),
        ({"train/texts/a.txt": b"x", "test/texts/a.png": grey(0)}, "class 'texts' has no training images"),
        ({"test/new/a.png": grey(0)}, "class 'new' is in test but not in train"),
        ({"train/new/a.png": grey(0)}, "class 'new' has no test images"),
        ({"train/new/a.png": grey(0), "test/new/": b""}, "class 'new' has no test images"),
    ],
)
def test_class_folders_are_checked(tmp_path: Path, suffix: str, more: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_split(make(tmp_path, suffix, files() | more))


def test_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        split = load_split(make(tmp_path, suffix, files() | {"train/cat/d.jpg": b"not a jpeg"}))
        with pytest.raises(UserError, match=r"train/cat/d\.jpg does not decode as an image"):
            split.train.images(range(len(split.train)))


def test_wrong_roots(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(grey(0))
    (tmp_path / "fake.zip").write_bytes(b"no archive at all")
    (tmp_path / "fake.tar").write_bytes(b"no archive at all")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    (tmp_path / "flat" / "train" / "a.png").write_bytes(grey(0))
    (tmp_path / "bare").mkdir()
    make(tmp_path / "two", "", files(), "a/")
    make(tmp_path / "two", "", files(), "b/")
    for root, message in {
        "nowhere": "nowhere does not exist; expected a folder or an archive",
        "image.png": "image.png is neither a folder nor an archive",
        "fake.zip": "fake.zip is damaged or cut short",
        "fake.tar": "fake.tar is damaged or cut short",
        "bare": "bare has no train folder; expected train/CLASS",
        "flat": "flat has no class folders in train",
        "two/set": r"has several data sets \(a, b\)",
    }.items():
        with pytest.raises(UserError, match=message):
            load_split(DataConfig(name="folder", root=str(tmp_path / root)))
    for name in ("folder", "npz"):
        with pytest.raises(UserError, match=f"data.name={name} needs data.root="):
            load_split(DataConfig(name=name))


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_archive_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    config = make(tmp_path, suffix, files())
    whole = Path(str(config.root)).read_bytes()
    last = len(whole) if suffix != ".tar" else whole.rstrip(b"\0").__len__()
    for length in (last // 3, last // 2, last - 3):
        Path(str(config.root)).write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged or cut short"):
            load_split(config)


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
@pytest.mark.parametrize("name", ["../train/cat/z.png", "/train/cat/z.png", "train/cat/../../../z.png"])
def test_archive_members_outside_of_it_are_refused(tmp_path: Path, suffix: str, name: str) -> None:
    with pytest.raises(UserError, match="has a member outside of it"):
        load_split(make(tmp_path, suffix, files() | {name: grey(0)}))


def test_links_in_archives_are_ignored(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(grey(200))
    for suffix, mode in ((".tar", "w"), (".tgz", "w:gz")):
        with tarfile.open(tmp_path / f"set{suffix}", mode) as tar:  # type: ignore[call-overload]
            for name, data in files().items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo(f"train/cat/link{kind.decode()}.png")
                info.type, info.linkname = kind, str(secret)
                tar.addfile(info)
    make(tmp_path, ".zip", files())
    with zipfile.ZipFile(tmp_path / "set.zip", "a") as archive:
        link = zipfile.ZipInfo("train/cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(secret))
    for suffix in (".tar", ".tgz", ".zip"):
        assert len(load_split(DataConfig(name="folder", root=str(tmp_path / f"set{suffix}"))).train) == 6


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    config = make(tmp_path, "", files())
    for part in ("train", "test"):
        os.symlink(tmp_path / "set" / part / "cat", tmp_path / "set" / part / "dog")
    assert load_split(config).train.classes == ("cat", "dog", "train")
