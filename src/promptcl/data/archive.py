"""Read the files below a folder, or in a .tar, .tar.gz, .tgz or .zip archive that is never extracted."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from promptcl.data.links import link_target, with_linked
from promptcl.data.names import decoded, encoding
from promptcl.data.walk import Listed, tidied, walked
from promptcl.errors import UserError
from promptcl.runtime import disk, packed

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
MAX_FILE = 2**28  # bytes of one unpacked file
MAX_UNPACKED = 2**32  # bytes that a .tar.gz may unpack to
MAX_RATIO = 100  # unpacked by packed bytes; images are compressed already, a file made to fill the disk reaches 1000
_MAX_NAME = 4096  # bytes of what a link in a zip points to


@dataclass(frozen=True)
class Tree:
    """The files in a folder or archive, by their relative paths with `/`; paths that end in `/` are folders.

    What is never an image or a class (`kinds.never`) is not among them, nor is what lies in a learner or a run.
    """

    where: Path
    paths: list[str]
    read: Callable[[str], bytes]
    lost: dict[str, str] = field(default_factory=dict)
    """What cannot be read, by its path, each with why, as words that follow a number: `encrypted`."""
    skipped: list[str] = field(default_factory=list)
    """Folders that are learners or runs."""


def open_tree(root: Path, everything: bool = False) -> Tree:
    """List what is in a folder or an archive; of a folder only what is below those of a split, or `everything`.

    A folder, a .tar and a .zip are read file by file when asked; a .tar.gz, which allows no such access, is unpacked
    once, into a temporary file that has no name. Links in folders are followed, those in archives where they point to
    what is in the archive.
    Raises UserError: nothing there, no archive, a damaged archive, a member that points outside of the archive or is
    larger than MAX_FILE, a .tar.gz that unpacks to more than MAX_RATIO times its size or MAX_UNPACKED.
    """
    if root.is_dir():
        return Tree(root, *tidied((walked(root, everything), lambda path: disk.read(root / path, MAX_FILE), {})))
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
            return Tree(root, *tidied(_zip(root)))
        return Tree(root, *tidied(_tar(root, None if root.suffix.lower() == ".tar" else _unpack(root))))
    except UserError:
        raise
    except Exception as error:  # tarfile and zipfile raise about anything on damaged archives, MemoryError included
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(
                f"{tempfile.gettempdir()} has no space to unpack {root}; free some, or unpack it and give the folder"
            ) from error
        raise UserError(f"the archive {root} is damaged or cut short ({error}); get it again") from error


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


def _tar(archive: Path, unpacked: IO[bytes] | None = None) -> Listed:
    file = unpacked or archive.open("rb")
    packed.check_tar(archive, file)
    places, lost = _places(archive, file, file.seek(0, os.SEEK_END))

    lock = threading.Lock()

    def read(path: str) -> bytes:
        return disk.read_at(file, *places[path], lock)

    return list(places), read, lost


def _places(archive: Path, file: IO[bytes], size: int) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Where each member of a tar of `size` bytes starts and how long it is, in bytes; and those that cannot be read."""
    members: list[tuple[bytes, tarfile.TarInfo]] = []
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        end = 0
        for info in tar:
            end = tar.offset
            if not info.issparse():  # the holes of a sparse file cost nothing to claim
                _check_size(archive, info.name, info.size)
            members.append((info.name.encode("utf-8", "surrogateescape"), info))
    if size < end + 1024:  # tarfile takes a missing end mark for the end
        raise EOFError("unexpected end of the file")
    other = encoding((name for name, _ in members), "tar")
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str | None] = {}
    lost: dict[str, str] = {}
    for raw, info in members:
        name = _member(archive, decoded(raw, other), info.isdir())
        for kind in (places, links, lost):  # the last member of a name counts
            kind.pop(name, None)
        if info.islnk() or info.issym():
            target = decoded(info.linkname.encode("utf-8", "surrogateescape"), other)
            links[name] = link_target("" if info.islnk() else name, target)
        elif (info.isreg() and not info.issparse()) or info.isdir():
            places[name] = (info.offset_data, info.size)
        else:
            lost[name] = "of a special kind"
    return with_linked(archive, places, links, lost), lost


def _zip(archive: Path) -> Listed:
    packed.check_zip(archive)
    file = zipfile.ZipFile(archive)
    stated = {info: _stated_name(info) for info in file.infolist()}
    other = encoding((_raw_name(info) for info, name in stated.items() if name is None), "zip")
    members: dict[str, zipfile.ZipInfo] = {}
    links: dict[str, str | None] = {}
    lost: dict[str, str] = {}
    known = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
    known.add(getattr(zipfile, "ZIP_ZSTANDARD", zipfile.ZIP_STORED))  # Python 3.14
    for info, name in stated.items():
        name = decoded(_raw_name(info), other) if name is None else name
        path = _member(archive, name, name.endswith(("/", "\\")))
        for kind in (members, links, lost):
            kind.pop(path, None)
        if info.flag_bits & 1:
            lost[path] = "encrypted"
        elif info.compress_type not in known:
            lost[path] = "in a compression that is not known here"
        elif stat.S_ISLNK(info.external_attr >> 16):
            links[path] = link_target(path, _link_of(file, info, other))
        else:
            members[path] = info
    found = with_linked(archive, members, links, lost)

    def read(path: str) -> bytes:
        _check_size(archive, path, found[path].file_size)
        try:
            return file.read(found[path])
        except Exception as error:  # zipfile and its three decompressors raise about anything
            raise UserError(f"'{path}' in {archive} is damaged ({error}); get the archive again") from error

    return list(found), read, lost


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    """The bytes of a name that is not marked as UTF-8, which zipfile reads as code page 437."""
    return info.orig_filename.partition("\0")[0].encode("cp437", "replace")


def _stated_name(info: zipfile.ZipInfo) -> str | None:
    """The name of a member of which the archive says that it is UTF-8: by a flag or an extra field; None elsewhere."""
    if info.flag_bits & 0x800:
        return info.orig_filename.partition("\0")[0]
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        # Info-ZIP's: version 1, a checksum of the plain name, which tells whether the file was renamed since.
        if kind == 0x7075 and 5 < size <= len(extra) - 4 and extra[4] == 1:
            (checksum,) = struct.unpack("<L", extra[5:9])
            if checksum == zlib.crc32(info.orig_filename.encode("cp437", "replace")):
                return extra[9 : 4 + size].decode("utf-8", "replace").partition("\0")[0]
        extra = extra[4 + size :]
    return None


def _link_of(file: zipfile.ZipFile, info: zipfile.ZipInfo, other: str) -> str:
    """What a link in a zip points to; empty, which is nowhere, where that cannot be read."""
    try:
        return decoded(file.read(info), other) if info.file_size <= _MAX_NAME else ""
    except Exception:  # zipfile and its three decompressors raise about anything
        return ""
