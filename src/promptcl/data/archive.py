"""Read the files below a folder, or in a .tar, .tar.gz, .tgz or .zip archive that is never extracted."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from promptcl.errors import UserError
from promptcl.runtime import disk, packed

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
MAX_FILE = 2**28  # bytes of one unpacked file
MAX_UNPACKED = 2**32  # bytes that a .tar.gz may unpack to
MAX_RATIO = 100  # unpacked by packed bytes; images are compressed already, a file made to fill the disk reaches 1000


@dataclass(frozen=True)
class Tree:
    """The files in a folder or archive, by their relative paths with `/`; paths that end in `/` are folders."""

    where: Path
    paths: list[str]
    read: Callable[[str], bytes]


def open_tree(root: Path, everything: bool = False) -> Tree:
    """List what is in a folder or an archive; of a folder only what is below `train` and `test`, or `everything`.

    A folder, a .tar and a .zip are read file by file when asked; a .tar.gz, which allows no such access, is unpacked
    once, into a temporary file that has no name. Links in archives are ignored, links in folders are followed.
    Raises UserError: nothing there, no archive, a damaged archive, a member that points outside of the archive or is
    larger than MAX_FILE, a .tar.gz that unpacks to more than MAX_RATIO times its size or MAX_UNPACKED.
    """
    if root.is_dir():
        return _folder(root, everything)
    if not root.exists():
        raise UserError(f"{root} does not exist; expected a folder or an archive ({' '.join(ARCHIVES)})")
    if not root.name.lower().endswith(ARCHIVES):
        raise UserError(f"{root} is neither a folder nor an archive ({' '.join(ARCHIVES)})")
    try:
        disk.check(root)
    except OSError as error:
        raise UserError(f"{root} cannot be read as an archive ({error.strerror}); get it again") from error
    try:
        if root.suffix.lower() == ".zip":
            return _zip(root)
        return _tar(root) if root.suffix.lower() == ".tar" else _tar_gz(root)
    except UserError:
        raise
    except Exception as error:  # tarfile and zipfile raise about anything on damaged archives, MemoryError included
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(
                f"{tempfile.gettempdir()} has no space to unpack {root}; free some, or unpack it and give the folder"
            ) from error
        raise UserError(f"the archive {root} is damaged or cut short ({error}); get it again") from error


def _folder(root: Path, everything: bool) -> Tree:
    tops = [root] if (root / "train").is_dir() else [top for top in root.iterdir() if (top / "train").is_dir()]
    paths: list[str] = []
    # A wrong root may be a home directory: no more is walked than needed.
    for start in [root] if everything else [top / split for top in tops for split in ("train", "test")]:
        for folder, folders, files in os.walk(start, followlinks=True):
            above = [path for path in Path(folder).parents if path.is_relative_to(start)]
            if any(path.samefile(folder) for path in above):  # a link back to where it came from
                folders.clear()
                continue
            inside = Path(folder).relative_to(root).as_posix() + "/"
            paths += [inside, *(f"{inside}{file}".removeprefix("./") for file in files)]
    return Tree(root, paths, lambda path: disk.read(root / path, MAX_FILE))


def _member(archive: Path, name: str, folder: bool) -> str:
    """The path of an archive member without a leading `./`. Raises UserError if it leads out of the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"the archive {archive} has a member outside of it ('{name}'); refused, make it again")
    return f"{path}/" if folder else str(path)


def _check_size(archive: Path, name: str, size: int) -> None:
    if size > MAX_FILE:
        raise UserError(
            f"'{name}' in {archive} unpacks to {size >> 20:,} MiB; at most {MAX_FILE >> 20} are read, take it out"
        )


def _unpack(archive: Path) -> IO[bytes]:
    """Unpack a .tar.gz into a temporary file without a name.

    Raises UserError where it grows beyond MAX_RATIO times its size, or MAX_UNPACKED.
    """
    limit = min(MAX_UNPACKED, max(2**26, MAX_RATIO * archive.stat().st_size))
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as its images are wanted
    with gzip.open(archive) as stream:
        while piece := stream.read(2**20):
            unpacked.write(piece)
            if unpacked.tell() > limit:
                raise UserError(
                    f"the archive {archive} unpacks to more than {limit >> 20:,} MiB; unpack it and give the folder"
                )
    return unpacked


def _tar_gz(archive: Path) -> Tree:
    return _tar(archive, _unpack(archive))


def _tar(archive: Path, unpacked: IO[bytes] | None = None) -> Tree:
    file = unpacked or archive.open("rb")
    packed.check_tar(archive, file)
    places = _places(archive, file, file.seek(0, os.SEEK_END))

    def read(path: str) -> bytes:
        start, size = places[path]
        file.seek(start)
        return file.read(size)

    return Tree(archive, list(places), read)


def _places(archive: Path, file: IO[bytes], size: int) -> dict[str, tuple[int, int]]:
    """Where each member of a tar of `size` bytes starts and how long it is, in bytes."""
    places: dict[str, tuple[int, int]] = {}
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        end = 0
        for info in tar:
            end = tar.offset
            # The holes of a sparse file cost nothing to claim.
            if (info.isreg() and not info.issparse()) or info.isdir():
                _check_size(archive, info.name, info.size)
                places[_member(archive, info.name, info.isdir())] = (info.offset_data, info.size)
    if size < end + 1024:  # tarfile takes a missing end mark for the end
        raise EOFError("unexpected end of the file")
    return places


def _zip(archive: Path) -> Tree:
    packed.check_zip(archive)
    file = zipfile.ZipFile(archive)
    members = {
        _member(archive, info.filename, info.is_dir()): info
        for info in file.infolist()
        if not stat.S_ISLNK(info.external_attr >> 16) and not info.filename.startswith("__MACOSX/")
    }

    def read(path: str) -> bytes:
        _check_size(archive, path, members[path].file_size)
        try:
            return file.read(members[path])
        except Exception as error:  # zipfile and its three decompressors raise about anything
            raise UserError(f"'{path}' in {archive} is damaged ({error}); get the archive again") from error

    return Tree(archive, list(members), read)
