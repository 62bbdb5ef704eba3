"""Open files that come from strangers, and write files whole or not at all. Imports no torch.

What is to be read is checked before its first byte: a plain file, of a size that is allowed, that is not mostly holes.
A pipe or a device may never end, and a file with holes is as large as its maker says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

HUGE = 2**26
"""Bytes from which on the holes of a file count."""
MAX_RATIO = 100
"""Bytes of a file for each one that is really there; a file made to fill the memory has none there."""
_BLOCK = 2**20
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def expanded(path: Path | str) -> Path:
    """The path with `~` and `~user` in its place; a user that does not exist is left as it stands."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError there


def check(path: Path | str, most: int | None = None) -> int:
    """Size in bytes of the plain file `path`, links followed.

    Raises OSError: it cannot be read, is no plain file, has more than `most` bytes, or is mostly holes.
    """
    with opened(path, most) as file:
        return os.fstat(file.fileno()).st_size


def opened(path: Path | str, most: int | None = None) -> BinaryIO:
    """Open the plain file `path` for reading, links followed. Raises OSError as `check` does."""
    _check_kind(path, os.stat(path).st_mode)  # opening a device may already do something
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    # Without O_NONBLOCK a pipe that has taken the place of the file since then would be waited for.
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115 - the caller closes it
    try:
        found = os.fstat(file.fileno())
        _check_kind(path, found.st_mode)
        if most is not None and found.st_size > most:
            raise _too_large(path, most)
        if found.st_size > HUGE and _is_hollow(file.fileno(), found.st_size):
            raise OSError(errno.EINVAL, "it is mostly holes, expected a file with all of its content", str(path))
    except BaseException:
        file.close()
        raise
    return file


def read(path: Path | str, most: int) -> bytes:
    """All of the plain file `path`. Raises OSError as `check` does; `most` holds too where the size is a lie."""
    with opened(path, most) as file:
        said = os.fstat(file.fileno()).st_size
        pieces = [file.read(said + 1) or b""]
        size = len(pieces[0])
        while said < size <= most and pieces[-1]:  # it grew meanwhile, or is one of those of /proc, which have no size
            pieces.append(file.read(_BLOCK) or b"")
            size += len(pieces[-1])
    if size > most:
        raise _too_large(path, most)
    return b"".join(pieces)


def _check_kind(path: Path | str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a plain file", str(path))


def _too_large(path: Path | str, most: int) -> OSError:
    amount = f"{most >> 20:,} MiB" if most >= _BLOCK else f"{most:,} bytes"
    return OSError(errno.EFBIG, f"it is larger than {amount}, the most that is read", str(path))


def _is_hollow(file: int, size: int) -> bool:
    """Whether less than a hundredth of the open file is really there; False where the system cannot tell."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    there = end = 0
    try:
        for _ in range(10_000):
            start = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
            there += end - start
            if there * MAX_RATIO >= size or end >= size:
                break
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that there is nothing but a hole up to the end
            return False
    finally:
        os.lseek(file, 0, os.SEEK_SET)
    return there * MAX_RATIO < size


def write(path: Path, data: bytes, head: str = ".") -> None:
    """Write `data` to the file `path`, all of it or nothing; head as of `write_whole`. Raises OSError."""

    def fill(file: BinaryIO) -> Path:
        file.write(data)
        return path

    with _naming(path):
        write_whole(path.parent, fill, head)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error of the disk names `path`, and not the temporary file beside it, of which nobody has heard."""
    try:
        yield
    except OSError as error:
        if str(error.filename).endswith(".tmp"):
            error.filename, error.filename2 = str(path), None
        raise


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write several files, each whole, and none before all of them are on the disk. Raises OSError."""
    temporary = {path: path.with_name(f".{secrets.token_hex(8)}.tmp") for path in contents}
    try:
        for path, data in contents.items():
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            with _naming(path), temporary[path].open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, written in temporary.items():
            os.replace(written, path)
        for folder in {path.parent for path in contents}:
            sync_folder(folder)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def write_whole(folder: Path, fill: Callable[[BinaryIO], Path], head: str = ".") -> Path:
    """Write a file in `folder` with `fill`, which returns its path; it appears only when all of it is on the disk.

    In this order: temporary file beside it, fsync, rename, fsync of the folder. The temporary file is new, under a name
    that nobody can guess: `head`, digits, `.tmp`. A link in the place of the file is replaced and not followed.
    Raises OSError.
    """
    temporary = folder / f"{head}{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            path = fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure; Windows has no such call."""
    if os.name != "nt":
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
