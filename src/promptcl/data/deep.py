"""Values of more than 8 bits: how deep they are, and what they are in 8 bits.

Files of 16 bits often hold the 10 or 12 bits of a camera or a microscope. Few say so; the largest value of a whole set
tells it where the largest of a single image, which may be dark, does not.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_DEPTHS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Largest:
    """The largest value of a set of images of more than 8 bits."""

    value: float

    @classmethod
    def fixed(cls, bits: int) -> Largest:
        """The largest value of so many bits."""
        return cls(2**bits - 1)

    @classmethod
    def of(cls, image: Image.Image) -> Largest:
        """That of an image of one channel of whole numbers or floats; a value that is no number counts as 0."""
        rows = max(1, 2**20 // image.width)
        bands = (image.crop((0, y, image.width, min(y + rows, image.height))) for y in range(0, image.height, rows))
        return cls(max(float(np.nan_to_num(np.asarray(band), posinf=0).max()) for band in bands))

    @property
    def bits(self) -> int:
        """The depth that holds the value: 8, 10, 12, 14 or 16 bits."""
        return next((bits for bits in _DEPTHS if self.value < 2**bits), _DEPTHS[-1])


class Depth:
    """How deep the images of one set are that hold more than 8 bits and do not say how many."""

    def __init__(self, values: Callable[[], Iterable[Largest | None]]) -> None:
        """values: gives the largest value of each of them (None for all others); asked only where one is met."""
        self._values = values
        self._own: Largest | None = None
        self._lock = threading.Lock()
        self._assumed: tuple[int, bool] = (0, True)

    @property
    def bits(self) -> int | None:
        """The depth that images of the set are taken for; None where none was met that does not say it."""
        return None if self._own is None else self.largest().bits

    def largest(self) -> Largest:
        """The largest value of all images of the set, or that of the depth that is assumed."""
        with self._lock:  # threads that decode ask at the same time, and it takes long
            if self._own is None:
                self._own = Largest(max((one.value for one in self._values() if one is not None), default=0.0))
        bits, at_least = self._assumed
        return self._own if not bits or (at_least and self._own.bits > bits) else Largest.fixed(bits)

    def assume(self, bits: int, at_least: bool) -> bool:
        """Take them for so deep; with `at_least` for what they are, if that is more. Says whether that changes some."""
        before = self.bits
        self._assumed = (bits, at_least)
        return before not in (None, self.bits)


def is_deep(file: Image.Image) -> bool:
    """Whether an opened image file holds values of more than 8 bits."""
    return file.mode.startswith("I") or file.mode == "F" or lower_tiles(file) is not None


def depth_said(file: Any) -> int | None:
    """The depth, in bits, that a TIFF states: its own where it is odd, or that of its largest value."""
    tags = getattr(file, "tag_v2", None)
    if tags is None or file.format != "TIFF" or not is_deep(file) or file.mode == "F":
        return None
    bits = _first(tags.get(258))
    if bits is not None and 8 < bits < 16:
        return bits
    largest = _first(tags.get(281))  # MaxSampleValue, which is 65535 where nobody has set it
    return None if largest is None or not 255 < largest < 2**15 else Largest(largest).bits


def _first(values: Any) -> int | None:
    """The first number of a tag that holds one or several; None where it holds something else."""
    first = values[0] if isinstance(values, tuple) and values else values
    return int(first) if isinstance(first, int | float) else None


def rgb_of_values(values: npt.NDArray[Any], largest: Largest) -> Image.Image:
    """An RGB image of values [H, W] or [H, W, 3], scaled so that the depth of the `largest` becomes 8 bits."""
    top = 2.0**largest.bits - 1
    if np.issubdtype(values.dtype, np.floating):
        top = 1.0 if largest.value <= 1 else top  # [0, 1] is the custom for floats
        scaled = np.nan_to_num(values).clip(0, top) * (255 / top)
    else:
        scaled = values.clip(0, int(top)) >> (largest.bits - 8)
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def lower_tiles(file: Image.Image) -> list[Any] | None:
    """How Pillow, which reads the upper bytes of an RGB file of 16 bits, reads its lower ones; None for other files.

    As if they were of the other byte order. Has to be asked before the file is loaded.
    """
    changed = []
    for codec, box, offset, args in getattr(file, "tile", None) or []:
        raw = args if isinstance(args, str) else args[0] if args else ""
        if not isinstance(raw, str) or not raw.startswith("RGB") or raw[-4:-1] != ";16":
            return None
        other = raw[:-1] + ("L" if raw[-1] == "B" or (raw[-1] == "N" and sys.byteorder == "big") else "B")
        changed.append((codec, box, offset, other if isinstance(args, str) else (other, *args[1:])))
    return changed or None


def largest_in(file: Image.Image) -> Largest | None:
    """The largest value of an opened file of more than 8 bits that does not say how many; None of any other."""
    if not is_deep(file) or depth_said(file) is not None:
        return None
    upper = lower_tiles(file) is not None
    file.load()
    return largest_of_upper(file) if upper else Largest.of(file)


def largest_of_upper(image: Image.Image) -> Largest:
    """The largest value of an image of 16 bits of which the upper bytes are known."""
    return Largest(max(top for _, top in image.getextrema()[:3]) * 256.0 + 255)  # type: ignore[misc]


def with_lower(upper: Image.Image, lower: Image.Image, largest: Largest) -> Image.Image:
    """An RGB image of 8 bits from the upper and the lower bytes of 16 bits; it is opaque."""
    whole = Image.new("RGB", upper.size)
    rows = max(1, 2**20 // upper.width)
    for y in range(0, upper.height, rows):
        box = (0, y, upper.width, min(y + rows, upper.height))
        high, low = (np.asarray(image.crop(box))[..., :3].astype(np.int32) for image in (upper, lower))
        whole.paste(rgb_of_values(high * 256 + low, largest), box[:2])
    return whole
