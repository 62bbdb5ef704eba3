"""Keep decoded images in memory, packed, so that a budget counts what they really take."""

from __future__ import annotations

import bisect
import threading

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_BLOCK = 2**26  # bytes that are asked for at a time: so much comes from the system itself, page by page as it is used
_ROW = 16  # bytes of the table for each image that could be kept


class Kept:
    """Images of one source in memory, by their row, up to a budget; threads may share it.

    A tensor of its own costs half a kilobyte beside its pixels, which for the smallest images is most of it, and lies
    between what decoding has freed, which the system then does not get back. So pixels are packed into blocks that come
    from the system, and a view is made when an image is asked for.
    """

    def __init__(self, count: int, most_bytes: int) -> None:
        """count: number of rows; most_bytes: of pixels and of the table that finds them."""
        self._count, self._most, self._lock = count, most_bytes, threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Drop all images."""
        with self._lock:
            self.bytes = 0
            """Bytes that are taken."""
            self._blocks: list[npt.NDArray[np.uint8]] = []
            self._starts: list[int] = []  # the place of each block, counted over all of them
            self._used = 0  # of the last block
            self._place_N = np.zeros(0, dtype=np.int64)
            self._size_N2 = np.zeros((0, 2), dtype=np.int32)

    def get(self, row: int) -> Tensor | None:
        """Image `row` as uint8 (3, H, W), not to be written to; None where it is not kept."""
        with self._lock:
            if not self.holds(row):
                return None
            place, height, width = int(self._place_N[row]), int(self._size_N2[row, 0]), int(self._size_N2[row, 1])
            block = bisect.bisect(self._starts, place) - 1
            start = place - self._starts[block]
            pixels = self._blocks[block][start : start + 3 * height * width]
        return torch.from_numpy(pixels.reshape(3, height, width))

    def holds(self, row: int) -> bool:
        """Whether image `row` is kept."""
        size_N2 = self._size_N2  # once: another thread may be making the table
        return len(size_N2) > 0 and bool(size_N2[row, 0])

    def put(self, row: int, image: Tensor) -> bool:
        """Keep a copy of image `row`, if there is room; says whether it is kept."""
        with self._lock:
            table = 0 if len(self._place_N) else _ROW * self._count
            if self.bytes + table + image.nbytes > self._most or not image.nbytes:
                return False
            if table:
                self._place_N = np.zeros(self._count, dtype=np.int64)
                self._size_N2 = np.zeros((self._count, 2), dtype=np.int32)
            if self._size_N2[row, 0]:
                return True
            if not self._blocks or self._used + image.nbytes > len(self._blocks[-1]):
                self._add_block(image.nbytes)
            target = self._blocks[-1][self._used : self._used + image.nbytes]
            target[:] = image.numpy().reshape(-1)
            self._place_N[row] = self._starts[-1] + self._used
            self._size_N2[row] = image.shape[1:]
            self._used += image.nbytes
            self.bytes += table + image.nbytes
            return True

    def _add_block(self, least: int) -> None:
        start = self._starts[-1] + len(self._blocks[-1]) if self._blocks else 0
        self._blocks.append(np.empty(max(least, min(_BLOCK, self._most)), dtype=np.uint8))
        self._starts.append(start)
        self._used = 0
