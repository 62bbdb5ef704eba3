"""Files below a folder, or in a .tar, .tar.gz, .tgz or .zip archive that is never extracted."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from promptcl.errors import UserError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


@dataclass(frozen=True)
class Tree:
    """Files by their paths (posix, relative); paths that end in "/" are folders."""

    where: Path
    paths: list[str]
    read: Callable[[str], bytes]


def open_tree(root: Path, everything: bool = False) -> Tree:
    """List what is in a folder or an archive; of a folder only what is below `train` and `test`, or `everything`.

    A folder, a .tar and a .zip are read file by file when asked; a .tar.gz, which allows no such access, is read once
    and its files stay in memory as they are. Links in archives are ignored, links in folders are followed.
    Raises UserError: nothing there, no archive, a damaged archive, a member that points outside of the archive.
    """
    if root.is_dir():
        return _folder(root, everything)
    if not root.exists():
        raise UserError(f"data.root={root} does not exist; expected a folder or an archive ({' '.join(ARCHIVES)})")
    if not root.name.lower().endswith(ARCHIVES):
        raise UserError(f"data.root={root} is neither a folder nor an archive ({' '.join(ARCHIVES)})")
    try:
        if root.suffix.lower() == ".zip":
            return _zip(root)
        return _tar(root) if root.suffix.lower() == ".tar" else _tar_gz(root)
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"the archive {root} is damaged or cut short ({error}); get it again") from error


def _folder(root: Path, everything: bool) -> Tree:
    tops = [root] if (root / "train").is_dir() else [top for top in root.iterdir() if (top / "train").is_dir()]
    paths: list[str] = []
    # A wrong root may be a home directory: no more is walked than needed.
    for start in [root] if everything else [top / split for top in tops for split in ("train", "test")]:
        for folder, _, files in os.walk(start, followlinks=True):
            inside = Path(folder).relative_to(root).as_posix() + "/"
            paths += [inside, *(f"{inside}{file}".removeprefix("./") for file in files)]
    return Tree(root, paths, lambda path: (root / path).read_bytes())


def _member(archive: Path, name: str, folder: bool) -> str:
    """The path of an archive member without "./"; raises UserError if it leads out of the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"the archive {archive} has a member outside of it ('{name}'); refused, make it again")
    return f"{path}/" if folder else str(path)


def _tar_gz(archive: Path) -> Tree:
    contents: dict[str, bytes] = {}
    with gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for info in tar:
                file = tar.extractfile(info) if info.isreg() else None
                if file or info.isdir():
                    contents[_member(archive, info.name, info.isdir())] = file.read() if file else b""
        _drain(stream)
    return Tree(archive, list(contents), contents.__getitem__)


def _drain(stream: gzip.GzipFile) -> None:
    """Read to the end: gzip compares lengths and checksums only there."""
    while stream.read(2**20):
        pass


def _tar(archive: Path) -> Tree:
    places: dict[str, tuple[int, int]] = {}
    with tarfile.open(archive, "r:") as tar:
        end = 0
        for info in tar:
            end = tar.offset
            if info.isreg() or info.isdir():
                places[_member(archive, info.name, info.isdir())] = (info.offset_data, info.size)
    if archive.stat().st_size < end + 1024:  # tarfile takes a missing end mark for the end
        raise EOFError("unexpected end of the file")

    def read(path: str) -> bytes:
        with archive.open("rb") as file:
            file.seek(places[path][0])
            return file.read(places[path][1])

    return Tree(archive, list(places), read)


def _zip(archive: Path) -> Tree:
    file = zipfile.ZipFile(archive)
    members = {
        _member(archive, info.filename, info.is_dir()): info
        for info in file.infolist()
        if not stat.S_ISLNK(info.external_attr >> 16)
    }
    return Tree(archive, list(members), lambda path: file.read(members[path]))
