"""Keep decoded and reduced images on disk, so that a file is decoded once and not once an epoch or run.

Every process appends to a file of its own and reads those of all. A record is a head (_HEAD), then the pixels, and both
have a checksum: what a killed process or a full disk has cut short is not there, for whoever reads it. Files are read
at positions and not mapped into memory: a mapped file that somebody cuts ends the process, and counts as its memory.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import secrets
import struct
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import __version__ as PILLOW
from PIL import features
from torch import Tensor

from promptcl.data.kinds import heif_decoder
from promptcl.runtime import disk

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MAGIC = b"promptcl images 1\n"
_HEAD = struct.Struct("<32sIII")  # key, height, width, checksum of the pixels; then a checksum of all this
_CHECK = struct.Struct("<I")
_SUFFIX = ".shrunken"
_MOST_SIDE = 2**20
_MOST_FILES = 100  # that are open at a time: each process leaves one


@dataclass
class _Part:
    """A file of decoded images."""

    path: Path
    file: BinaryIO
    size: int
    own: bool = False
    used: bool = False
    """Whether this process has found something in it."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class _Place:
    """Where an image is."""

    part: _Part
    start: int
    height: int
    width: int
    checksum: int
    good: bool = False
    """Whether its pixels are known to be what was written."""


class Shrunken:
    """Decoded images in a folder, by the SHA-256 of their files and how they were decoded; threads may share it.

    The folder has at most so many bytes. Where that is too little for a set of images, the first ones stay: whoever
    goes round and round would find nothing if the last ones did. What other sets left goes first, the file that was
    used longest ago before the others.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """The folder is made, and its files are looked through, at the first image that is asked for."""
        self.folder, self._most = folder, most_bytes
        self.trouble: str | None = None
        """Why nothing more is written, if it is so."""
        self._lock = threading.Lock()
        self._places: dict[bytes, _Place] | None = None
        self._parts: list[_Part] = []
        self._older: list[Path] = []  # files that are not opened, the one used longest ago first
        self._own: _Part | None = None
        self._pid = os.getpid()
        self._full = most_bytes <= 0

    def get(self, digest: bytes, max_side: int) -> Tensor | None:
        """The image of the file with this SHA-256, uint8 (3, H, W), reduced to `max_side`; None: it is not here."""
        key = _key(digest, max_side)
        with self._lock:
            place = self._opened().get(key)
        if place is None:
            return None
        size = 3 * place.height * place.width
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            pixels = disk.read_at(place.part.file, place.start, size, place.part.lock)
            if len(pixels) == size and (place.good or zlib.crc32(pixels) == place.checksum):
                place.good = True
                self._use(place.part)
                whole = np.frombuffer(pixels, dtype=np.uint8).reshape(3, place.height, place.width)
                return torch.from_numpy(whole.copy())
        with self._lock:
            self._opened().pop(key, None)
        return None

    def put(self, digest: bytes, max_side: int, image: Tensor) -> None:
        """Keep an image, if there is room and the disk takes it."""
        pixels, key = image.numpy().tobytes(), _key(digest, max_side)
        height, width, checksum = *image.shape[1:], zlib.crc32(pixels)
        head = _HEAD.pack(key, height, width, checksum)
        record = b"".join([head, _CHECK.pack(zlib.crc32(head)), pixels])
        with self._lock:
            if self._full or key in self._opened() or not self._has_room(len(record)):
                return
            try:
                part = self._own = self._own or self._new_part()
                if part.file.write(record) < len(record):  # one call, unbuffered; the rest has a wrong checksum
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self.trouble, self._full = f"{self.folder} takes no more decoded images ({error.strerror})", True
                return
            start = part.size + len(record) - len(pixels)
            part.size += len(record)
            self._opened()[key] = _Place(part, start, height, width, checksum, good=True)

    def close(self) -> None:
        """Close the files; nothing is found or kept any more."""
        with self._lock:
            for part in self._parts:
                part.file.close()
            self._parts, self._places, self._own, self._full = [], {}, None, True

    def _opened(self) -> dict[bytes, _Place]:
        """What is in the folder, in its newest files; looked through once, and anew after a fork."""
        if self._parts and self._pid != os.getpid():  # two must not write to one file, nor unlock it for each other
            for part in self._parts:
                part.file.close()
            self._parts, self._places, self._own = [], None, None
        if self._places is None:
            self._pid = os.getpid()
            self._places = {}
            found = sorted(self.folder.glob(f"*{_SUFFIX}"), key=lambda path: _status(path)[1])
            self._older = found[:-_MOST_FILES]
            for path in found[-_MOST_FILES:]:
                with contextlib.suppress(OSError):
                    part = _Part(path, disk.opened(path), path.stat().st_size)
                    self._parts.append(part)
                    self._places |= _places(part)
        return self._places

    def _has_room(self, size: int) -> bool:
        """Whether a record of `size` bytes fits, once files have made way that this process has found nothing in."""
        size += 0 if self._own else len(_MAGIC)
        while self._taken() + size > self._most:
            if self._older:
                _remove(self._older.pop(0))
                continue
            others = [part for part in self._parts if not part.own and not part.used and not _is_written(part.file)]
            if not others:
                self._full = True
                return False
            oldest = min(others, key=lambda part: _status(part.path)[1])
            self._parts.remove(oldest)
            self._places = {key: place for key, place in self._opened().items() if place.part is not oldest}
            with contextlib.suppress(OSError):
                if os.name == "nt":  # which deletes no open file; elsewhere a thread may still read it
                    oldest.file.close()
                oldest.path.unlink()
        return True

    def _taken(self) -> int:
        """Bytes in the folder, what other processes have written meanwhile too."""
        return sum(_status(path)[0] for path in self.folder.glob(f"*{_SUFFIX}"))

    def _new_part(self) -> _Part:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{secrets.token_hex(8)}{_SUFFIX}"
        part = _Part(path, path.open("xb+", buffering=0), len(_MAGIC), own=True)
        if fcntl is not None:
            fcntl.flock(part.file, fcntl.LOCK_EX)  # until this process ends
        part.file.write(_MAGIC)
        self._parts.append(part)
        return part

    def _use(self, part: _Part) -> None:
        """Note that a file is of use: it is deleted after others."""
        if not part.used:
            part.used = True
            with contextlib.suppress(OSError):
                os.utime(part.path)


def _key(digest: bytes, max_side: int) -> bytes:
    """What a decoded image is known by: its file, how it is reduced, and the libraries that decode."""
    return hashlib.sha256(f"{max_side}, {_libraries()}".encode() + digest).digest()


@functools.cache
def _libraries() -> str:
    names = ("jpg", "libjpeg_turbo", "webp", "avif", "libtiff")
    return f"Pillow {PILLOW}, {[(name, features.version(name)) for name in names]}, HEIF {heif_decoder()}"


def _status(path: Path) -> tuple[int, float]:
    """Bytes of a file and when it was last of use; zeros where somebody else has deleted it."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0.0
    return found.st_size, found.st_mtime


def _is_written(file: BinaryIO) -> bool:
    """Whether a process that lives writes to the file: deleting it would free nothing."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _remove(path: Path) -> None:
    """Delete a file that is not opened, unless a process that lives writes to it."""
    with contextlib.suppress(OSError):
        with disk.opened(path) as file:
            written = _is_written(file)
        if not written:
            path.unlink()


def _places(part: _Part) -> dict[bytes, _Place]:
    """The records of a file, up to the first one that is cut short or damaged."""
    found: dict[bytes, _Place] = {}
    if disk.read_at(part.file, 0, len(_MAGIC), part.lock) != _MAGIC:
        return found
    at, width_of_head = len(_MAGIC), _HEAD.size + _CHECK.size
    while at + width_of_head <= part.size:
        head = disk.read_at(part.file, at, width_of_head, part.lock)
        if len(head) < width_of_head or _CHECK.unpack(head[_HEAD.size :])[0] != zlib.crc32(head[: _HEAD.size]):
            break
        key, height, width, checksum = _HEAD.unpack(head[: _HEAD.size])
        end = at + width_of_head + 3 * height * width
        if end > part.size or not 0 < height <= _MOST_SIDE or not 0 < width <= _MOST_SIDE:
            break
        found[key] = _Place(part, at + width_of_head, height, width, checksum)
        at = end
    return found


_shared: dict[tuple[Path, int], Shrunken] = {}


def shared(folder: Path, most_bytes: int) -> Shrunken:
    """The one cache of this process in a folder."""
    if (folder, most_bytes) not in _shared:
        _shared[folder, most_bytes] = cache = Shrunken(folder, most_bytes)
        atexit.register(cache.close)
    return _shared[folder, most_bytes]
