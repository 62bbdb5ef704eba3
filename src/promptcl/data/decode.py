"""Decode one image in any form to uint8 (3, H, W): files of any mode, Pillow images, arrays, tensors."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from promptcl.data.kinds import FORMATS, KINDS

MAX_PIXELS = 100_000_000  # decoded pixels of one image: 400 MB at most while it is read
_MAX_ASPECT = 16  # a strip longer than this times `max_side` is squeezed: views are square anyway


def decode(data: bytes, max_side: int) -> Tensor:
    """Decode the content of an image file to uint8 (3, H, W), RGB, upright by its EXIF tag.

    The short side is at most `max_side` pixels, the aspect is kept.

    Transparent pixels become white, 16-bit values keep their upper byte, of an animation the first frame counts.
    Raises ValueError where the format is none of KINDS or the image too large, and whatever Pillow raises.
    """
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"not the content of a {KINDS}") from None
    with file:
        file.draft(None, (max_side, max_side))  # a JPEG is decoded at 1/2, 1/4 or 1/8, never below max_side
        width, height = file.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million, make it smaller")
        return from_pil(file, max_side)


def from_pil(image: Image.Image, max_side: int) -> Tensor:
    """Turn a Pillow image into uint8 (3, H, W) as `decode` does; the image itself stays as it is."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data raise about anything; the pixels are there
        image = ImageOps.exif_transpose(image)
    image = _rgb(image)
    short = min(image.size)
    if short > max_side or max(image.size) > _MAX_ASPECT * max_side:
        scale = min(1.0, max_side / short)
        width, height = (max(1, min(round(side * scale), _MAX_ASPECT * max_side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, whatever its mode: 16 bits, floats, transparency, a palette."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255 in some versions
        pixels = np.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":  # [0, 1] is the custom for floats, otherwise the range of 8 or of 16 bits
        pixels = np.nan_to_num(np.asarray(image))
        top = next((top for top in (1.0, 255.0) if pixels.max() <= top), 65535.0)
        return Image.fromarray((pixels.clip(0, top) * (255 / top)).astype(np.uint8)).convert("RGB")
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
