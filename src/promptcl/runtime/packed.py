"""Count what is in a packed file, and what it unpacks to, before anything in it is listed or unpacked."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from pathlib import Path
from typing import IO

from promptcl.errors import UserError
from promptcl.runtime import disk

MOST_FILES = 250_000
"""Files of one archive; to list them takes a second and a few hundred bytes of memory each."""
_LARGE = 2**28  # bytes that any archive may unpack to
_END, _END_64, _PLACE_64, _FILE = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
_MOST_DIRECTORY = 2**27  # bytes of the list of a zip's files


def check_zip(path: Path) -> None:
    """Look through the list of files in a zip, an .npz or a torch file; one that is no zip is passed over.

    Raises UserError: more than MOST_FILES in it, or it unpacks to more than 100 times its size (images and weights pack
    twice at best; a file that was made to fill the memory packs a thousand times). OSError as `disk.check`.
    """
    with disk.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        directory = _directory(file, size)
    files = unpacked = at = 0
    while directory[at : at + 4] == _FILE and len(directory) >= at + 46:
        (full,) = struct.unpack_from("<I", directory, at + 24)
        files, unpacked = files + 1, unpacked + full
        if files > MOST_FILES:
            raise _too_many(path)
        at += 46 + sum(struct.unpack_from("<HHH", directory, at + 28))
    if unpacked > max(_LARGE, disk.MAX_RATIO * size):
        raise UserError(
            f"{path} unpacks to {unpacked >> 20:,} MiB, more than {disk.MAX_RATIO} times its size; "
            "pack it again without compression"
        )


def _directory(file: IO[bytes], size: int) -> bytes:
    """The list of files at the end of a zip; empty where there is none."""
    start = max(0, size - 2**16 - 22)
    file.seek(start)
    tail = file.read(size - start)
    # All of this as zipfile does it, or what it lists would not be what was counted.
    end = len(tail) - 22 if tail[-22:-18] == _END and tail[-2:] == b"\0\0" else tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        return b""
    (length,) = struct.unpack_from("<I", tail, end + 12)
    far = end - 20 - 56
    if far >= 0 and tail[end - 20 : end - 16] == _PLACE_64 and tail[far : far + 4] == _END_64:
        (length,), end = struct.unpack_from("<Q", tail, far + 40), far
    # Where something stands before a zip, its places are wrong: the list ends where the end mark begins.
    begin = max(0, start + end - length)
    file.seek(begin)
    return file.read(min(length, _MOST_DIRECTORY))


def check_tar(path: Path, file: IO[bytes]) -> None:
    """Count the headers in a tar, open as `file` or unpacked from `path`. Raises UserError for more than MOST_FILES."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size < 512:
        return
    files = headers = at = 0
    with contextlib.suppress(ValueError), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while at + 512 <= size and data[at]:
            field = data[at + 124 : at + 136]
            long = field[0] >= 0x80  # not octal digits but a number of 11 bytes
            at_rest = int.from_bytes(field[1:], "big") if long else int(field.strip(b"\0 ") or b"0", 8)
            files += data[at + 156] not in b"xgXLK"  # which say more of the file that follows
            headers += 1
            if files > MOST_FILES or headers > 3 * MOST_FILES:
                raise _too_many(path)
            at += 512 + (at_rest + 511 & -512)


def _too_many(path: Path) -> UserError:
    return UserError(f"{path} holds more than {MOST_FILES:,} files; unpack it and give the folder")
