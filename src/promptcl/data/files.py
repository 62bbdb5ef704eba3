"""Image files as a source of pixels: decoded when they are asked for, kept in memory and on disk within budgets."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from promptcl.data.decode import decode, largest_of
from promptcl.data.deep import Depth, Largest
from promptcl.data.kept import Kept
from promptcl.data.kinds import advice
from promptcl.data.remarks import remarks
from promptcl.data.shrunken import Shrunken
from promptcl.errors import UserError

_SLOW = 0.0005  # seconds of work; ten times as many if most of it is waiting for the file


class FileSource:
    """A source of image files, decoded when they are asked for; threads may share it."""

    def __init__(
        self,
        paths: Sequence[str],
        fetch: Callable[[str], bytes],
        where: str = "",
        cache_mb: int = 2048,
        max_side: int = 512,
    ) -> None:
        """fetch: path -> bytes of the file; where: the folder or archive, for error messages.

        Decoded images stay in memory up to `cache_mb` MiB; once that is full, further ones are decoded each time, or
        read from `shrunken`. Images whose short side exceeds `max_side` pixels are reduced to it.
        """
        self._paths, self._fetch, self._where, self._max_side = paths, fetch, where, max_side
        self._kept = Kept(len(paths), cache_mb * 2**20)
        self.depth = Depth(lambda: (largest_of(fetch(path)) for path in paths))
        self.remarks: dict[int, str] = {}  # what the decoder remarked on images that it decoded all the same
        self.sound = np.zeros(len(paths), dtype=bool)  # rows that are known to decode
        self.shrunken: Shrunken | None = None  # where decoded images are kept on disk
        self._digests_N32 = np.zeros((0, 32), dtype=np.uint8)  # of files, those that are known; zeros elsewhere
        self._lock = threading.Lock()
        self._read = self._slow = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self._paths)

    def uncached(self) -> FileSource:
        """The same images, none of which are kept."""
        twin = FileSource(self._paths, self._fetch, self._where, 0, self._max_side)
        twin.depth = self.depth
        return twin

    def content(self, row: int) -> bytes:
        """The file of image `row`, as it is. Raises UserError when it cannot be read."""
        try:
            return self._fetch(self._paths[row])
        except Exception as error:  # files, archives and decompression: each has its own
            raise UserError(f"{self.name(row)} cannot be read ({error}); give it back or remove it") from error

    def name(self, row: int) -> str:
        """Folder or archive, and the path in it."""
        return f"{self._where}/{self._paths[row]}" if self._where else self._paths[row]

    def holds(self, row: int) -> bool:
        """Whether image `row` is in memory."""
        return self._kept.holds(row)

    def is_slow(self, row: int) -> bool:
        """Whether image `row` takes so long to read that a thread for it pays: threads wait for Python's lock too."""
        return not self.holds(row) and 2 * self._slow >= self._read

    @property
    def kept_bytes(self) -> int:
        """Bytes of memory that the images take that are kept."""
        return self._kept.bytes

    def read(self, row: int) -> Tensor:
        """Image `row` as uint8 (3, H, W); not to be written to. Raises UserError when it does not decode."""
        kept = self._kept.get(row)
        if kept is not None:
            return kept
        before = time.thread_time(), time.perf_counter()
        try:
            image = self._decoded(row)
        except Exception as error:  # Pillow's decoders raise about anything on damaged files, and bombs
            raise UserError(
                f"{self.name(row)} does not decode as an image ({error}); {advice(self._paths[row])}"
            ) from error
        took = time.thread_time() - before[0], time.perf_counter() - before[1]
        self._read, self._slow = self._read + 1, self._slow + (took[0] > _SLOW or took[1] > 10 * _SLOW)
        self.sound[row] = True
        self._kept.put(row, image)
        return image

    def _decoded(self, row: int) -> Tensor:
        """Image `row` from the cache on disk, or from its file; of a file that was read before only from its digest."""
        if self.shrunken is None:
            return self._decode(row, self._fetch(self._paths[row]))[0]
        known = len(self._digests_N32) and self._digests_N32[row].any()
        found = self.shrunken.get(self._digests_N32[row].tobytes(), self._max_side) if known else None
        if found is not None:
            return found
        data = self._fetch(self._paths[row])
        digest = hashlib.sha256(data).digest()
        with self._lock:
            if not len(self._digests_N32):
                self._digests_N32 = np.zeros((len(self._paths), 32), dtype=np.uint8)
            self._digests_N32[row] = np.frombuffer(digest, dtype=np.uint8)
        found = self.shrunken.get(digest, self._max_side)
        if found is None:
            found, alone = self._decode(row, data)
            if alone:
                self.shrunken.put(digest, self._max_side, found)
        return found

    def _decode(self, row: int, data: bytes) -> tuple[Tensor, bool]:
        """The decoded file, and whether it is a function of the file alone, with nothing to remark on it."""
        asked: list[bool] = []

        def largest() -> Largest:
            asked.append(True)
            return self.depth.largest()

        with remarks() as said:
            image = decode(data, self._max_side, largest)
        if said:
            self.remarks[row] = f"{self.name(row)}: {said[0]}"
        return image, not asked and not said

    def assume(self, bits: int, at_least: bool = False) -> None:
        """Take images that hold more than 8 bits for so deep, or for what they are if that is more (`at_least`)."""
        if self.depth.assume(bits, at_least):
            self._kept.clear()
