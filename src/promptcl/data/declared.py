"""Refuse an image by the size that its header declares, before memory is taken for its pixels."""

from __future__ import annotations

from typing import Any

from PIL import Image

MAX_PIXELS = 100_000_000
"""Decoded pixels of one image."""
MAX_LENGTH = 100_000
"""Pixels of one side: each row of an image takes memory of its own, however short it is."""
MAX_MEMORY = 2**29
"""Bytes that one image may take while it is read, beside its file."""
_BYTES = {"1": 1, "L": 1, "P": 1}  # of a pixel in Pillow's memory; I;16 2, all others 4
# What libraries take beside that. libwebp: two canvases and a copy; the others a frame in YUV and a copy.
_BESIDE = {"WEBP": 12, "AVIF": 12, "HEIF": 12}


def check_webp(data: bytes) -> None:
    """Raise ValueError for a WebP whose canvas would take too much memory; whatever else `data` is passes."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return
    width = height = 0
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif data[12:16] == b"VP8 ":
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    _check(width, height, _BESIDE["WEBP"] + 4)


def check_declared(data: bytes, file: Image.Image) -> None:
    """Raise ValueError for a JPEG whose reader would keep all of its coefficients, and these are too many.

    Others are read a few rows at a time, and at a fraction of their size.
    """
    if file.format in ("JPEG", "MPO") and ("progressive" in file.info or _scans_apart(data)):
        _check(*file.size, 2 * len(file.getbands()), pixels=False)


def check_opened(file: Image.Image) -> None:
    """Raise ValueError for an image whose pixels would take too much memory."""
    size = _BYTES.get(file.mode, 2 if file.mode.startswith("I;16") else 4)
    size += _BESIDE.get(file.format or "", 0)
    if getattr(file, "is_animated", False) and file.format == "PNG":
        size *= 2  # what the next frame is drawn on
    _check(*file.size, size, beside=_strip(file))


def _check(width: int, height: int, size: int, beside: int = 0, pixels: bool = True) -> None:
    """Raise ValueError for so many pixels of `size` bytes, and `beside` bytes."""
    if pixels and width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million, make it smaller")
    if max(width, height) > MAX_LENGTH:
        raise ValueError(f"{width} x {height} pixels: a side is longer than {MAX_LENGTH}, make it smaller")
    if width * height * size + beside > MAX_MEMORY:
        raise ValueError(
            f"{width} x {height} pixels of this kind take more than {MAX_MEMORY >> 20} MiB to read, make it smaller"
        )


def _scans_apart(data: bytes) -> bool:
    """Whether the first scan of a JPEG does not have all of its colours, so that others follow."""
    place, colours = 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in range(0xC0, 0xC4):
            colours = data[place + 9] if place + 9 < len(data) else 0
        if marker == 0xDA:
            return data[place + 4 : place + 5] != bytes([colours])
        place += 2 + length
    return True


def _strip(file: Any) -> int:
    """Bytes of a packed strip or tile of a TIFF, which is unpacked as one."""
    tags = getattr(file, "tag_v2", None)
    if tags is None or file.format != "TIFF" or file.info.get("compression", "raw") == "raw":
        return 0
    bits = tags.get(258, (1,))
    depth = int(sum(bits) if isinstance(bits, tuple) else bits)
    rows, across = min(int(tags.get(278, file.height)), file.height), file.width
    if 322 in tags and 323 in tags:
        across, rows = int(tags[322]), int(tags[323])
    size: int = (across * depth + 7) // 8 * rows
    return size
