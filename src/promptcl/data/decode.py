"""Decode one image in any form to uint8 (3, H, W): files of any mode, Pillow images, arrays, tensors.

While an image is read it takes at most MAX_MEMORY beside its file: what would take more is refused by the size that its
header declares, before anything is decoded.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from promptcl.data.declared import MAX_MEMORY, check_declared, check_opened, check_webp
from promptcl.data.deep import (
    Largest,
    depth_said,
    is_deep,
    largest_in,
    largest_of_upper,
    lower_tiles,
    rgb_of_values,
    with_lower,
)
from promptcl.data.kinds import FORMATS, KINDS
from promptcl.data.remarks import no_bombs

_MAX_ASPECT = 16  # a strip longer than this times `max_side` is squeezed: views are square anyway
_BAND = 2**20  # pixels that are converted at a time
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, max_side: int, largest: Callable[[], Largest | None] | None = None) -> Tensor:
    """Decode the content of an image file to uint8 (3, H, W), RGB, upright by its EXIF tag.

    The short side is at most `max_side` pixels, the aspect is kept. Transparent pixels become white, of an animation
    the first frame counts. Values of more than 8 bits are scaled by the depth that the file says, else by the `largest`
    value in the set that the image belongs to (None: its own).
    Raises ValueError where the format is none of KINDS or the image too large, and whatever Pillow raises.
    """
    file = _open(data, max_side)
    said, lower = depth_said(file), lower_tiles(file)
    deep = is_deep(file)
    file.load()
    turn = _turn(file)
    if deep:
        known = Largest.fixed(said) if said else largest() if largest is not None else None
        known = known or (Largest.of(file) if lower is None else largest_of_upper(file))
        if lower is not None and known.bits < 16:  # Pillow has read the upper bytes, which are right for 16 bits
            again = _open(data, max_side)
            again.tile = lower
            again.load()
            file = with_lower(file, again, known)
        return _finished(file, max_side, known, turn)
    return _finished(file, max_side, None, turn)


def _open(data: bytes, max_side: int) -> Any:
    """The image in `data`, checked but not yet decoded. Raises ValueError as `decode` does."""
    check_webp(data)  # Pillow's reader takes its memory when it is opened
    with no_bombs():
        try:
            file = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"not the content of a {KINDS}") from None
        except Image.DecompressionBombError:
            raise ValueError("more pixels than are ever read, make it smaller") from None
    check_declared(data, file)
    file.draft(None, (max_side, max_side))  # a JPEG is decoded at 1/2, 1/4 or 1/8, never below max_side
    check_opened(file)
    return file


def largest_of(image: bytes | Image.Image) -> Largest | None:
    """The largest value of an image of more than 8 bits that does not say how many; None of all others, and bad ones.

    It tells the depth of the set of images that this one belongs to.
    """
    with contextlib.suppress(Exception):  # what cannot be decoded is told where it is decoded
        if isinstance(image, Image.Image):
            return Largest.of(image) if is_deep(image) else None
        return largest_in(_open(image, 1))
    return None


def from_pil(image: Image.Image, max_side: int, largest: Callable[[], Largest | None] | None = None) -> Tensor:
    """Turn a Pillow image into uint8 (3, H, W) as `decode` does; the image itself stays as it is."""
    image.load()
    deep = largest is not None and is_deep(image)
    return _finished(image, max_side, largest() if deep and largest is not None else None, _turn(image))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the image upright by its EXIF tag; None: nothing."""
    with contextlib.suppress(Exception):  # damaged EXIF data raise about anything; the pixels are there
        return _TURNS.get(image.getexif().get(0x0112, 1))
    return None


def _finished(image: Image.Image, max_side: int, largest: Largest | None, turn: Image.Transpose | None) -> Tensor:
    """The pixels of a decoded image: RGB, upright, small enough."""
    short, long = min(image.size), max(image.size)
    shrinks = short > max_side or long > _MAX_ASPECT * max_side
    scale = min(1.0, max_side / short)
    width, height = (max(1, min(round(side * scale), _MAX_ASPECT * max_side)) for side in image.size)
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    copies = 1 + (not plain) + (turn is not None)
    if not plain or (turn is not None and 4 * copies * image.width * image.height > MAX_MEMORY):
        factors = (1, 1)
        if 4 * copies * image.width * image.height > MAX_MEMORY:  # averaged down before it is resized
            factors = max(1, image.width // (2 * width)), max(1, image.height // (2 * height))
        image = _rgb(image, factors, largest)
    if turn is not None:
        image = image.transpose(turn)
        width, height = (height, width) if turn in tuple(_TURNS.values())[3:] else (width, height)
    if shrinks:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.array(image)
    # By numpy: torch would copy with threads of its own, for each thread that decodes.
    planes = np.broadcast_to(pixels, (3, *pixels.shape)) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))


def _rgb(image: Image.Image, factors: tuple[int, int], largest: Largest | None) -> Image.Image:
    """The image in RGB, whatever its mode, reduced by whole factors; converted a band of rows at a time."""
    across, down = factors
    if image.mode.startswith("I") or image.mode == "F":
        largest = largest or Largest.of(image)
    small = Image.new("RGB", (-(-image.width // across), -(-image.height // down)))
    rows = max(1, _BAND // image.width // down) * down
    for top in range(0, image.height, rows):
        band = _rgb_band(image.crop((0, top, image.width, min(top + rows, image.height))), largest)
        small.paste(band.reduce(factors) if factors != (1, 1) else band, (0, top // down))
    return small


def _rgb_band(image: Image.Image, largest: Largest | None) -> Image.Image:
    """A few rows in RGB: of 16 bits, of floats, transparent, with a palette."""
    if largest is not None and (image.mode.startswith("I") or image.mode == "F"):
        return rgb_of_values(np.asarray(image), largest)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def from_array(image: Any, max_side: int) -> Tensor:
    """Turn an array (H, W) or (H, W, 3 or 4) or a tensor (1 or 3, H, W) into uint8 (3, H, W) as `decode` does.

    Values are uint8, or floats in [0, 1]. Raises ValueError for another type, shape or range.
    """
    given = f"{type(image).__name__} {image.dtype} {tuple(image.shape)}"
    if isinstance(image, Tensor):
        pixels = image.detach().cpu().numpy()
        pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 and pixels.shape[0] in (1, 3) else pixels[None, None]
    else:
        pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if 0 in pixels.shape or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(f"{given}: expected an array (H, W, 3) or a tensor (3, H, W)")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"{given}: floats are expected in [0, 1]; divide by 255, or give uint8")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{given}: expected uint8, or floats in [0, 1]")
    return from_pil(Image.fromarray(pixels), max_side)
