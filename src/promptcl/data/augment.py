"""Cut, resize and flip images for the model: one separable, antialiased resampling of a whole batch.

Shapes: B images, C channels, H W source pixels, S output pixels a side.
Every output row is a weighted mean of source rows and every output column one of source columns, so a crop, its
bilinear resize and its flip are two matrix products with small matrices: out_SS = rows_SH @ image_HW @ columns_SW^T.
The weights are Pillow's (and torch's `antialias=True`): a triangle as wide as the output pixel, never narrower than a
source pixel, cut at the border and made to sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from promptcl.config import DataConfig
from promptcl.data.colours import recoloured
from promptcl.runtime.device import send

_CHUNK = {"cpu": 2**20}  # values resampled at once: what fits the processor's cache is twice as fast there,
_CHUNK_ELSEWHERE = 2**25  # and elsewhere the float copies of large photos have to stay bounded (128 MiB)


def eval_view(images: Sequence[Tensor], size: int, crop: float, device: torch.device | None = None) -> Tensor:
    """Cut the central square of each image for evaluation: uint8 (3, H, W) to float32 (B, 3, size, size) in [0, 1].

    The same as a bilinear, antialiased resize to a square of side size / crop (the aspect is not kept, as in the
    official runs: 256 for 224) followed by a central crop. `device` does the work and gets the result; None: the
    device of the images.
    """
    boxes_B4 = _whole(images) * torch.tensor([(1 - crop) / 2, (1 - crop) / 2, crop, crop], dtype=torch.float64)
    return _resample(images, boxes_B4, torch.zeros(len(images), dtype=torch.bool), size, False, device)


def train_view(
    images: Sequence[Tensor],
    size: int,
    config: DataConfig,
    generator: torch.Generator,
    device: torch.device | None = None,
    rows: slice = slice(None),
    total: int | None = None,
) -> Tensor:
    """Cut a random view of each image for training: uint8 (3, H, W) to float32 (B, 3, size, size) in [0, 1].

    By `config.augment`: a random resized crop of the decoded image, then a horizontal flip with probability 1/2
    (`crop`; the flip only with `config.hflip`), the evaluation view with such a flip (`flip`), or without (`none`).
    With `config.jitter`, other colours then (`recoloured`).
    `generator` (on the CPU) alone decides what is cut and flipped, whatever does the work: `device`, or None
    for the device of the images. Where `images` are only the `rows` of `total` ones, as many values are drawn as for
    all of them, and these get what they would get among them.
    Differs from the official runs in: no 256 x 256 and no JPEG step before the crop, and antialiased.
    """
    whole_B4 = _whole(images)
    if config.augment == "crop":
        boxes_B4 = random_boxes(whole_B4[:, 2:], config.crop_scale, config.crop_ratio, generator, rows, total)
    else:
        crop = config.eval_crop
        boxes_B4 = whole_B4 * torch.tensor([(1 - crop) / 2, (1 - crop) / 2, crop, crop], dtype=torch.float64)
    flips_B = torch.zeros(len(images), dtype=torch.bool)
    if config.hflip and config.augment != "none":
        flips_B = torch.rand(total or len(images), generator=generator)[rows] < 0.5
    views_BCSS = _resample(images, boxes_B4, flips_B, size, config.augment == "crop", device)
    return recoloured(views_BCSS, generator, rows, total) if config.jitter and config.augment != "none" else views_BCSS


def random_boxes(
    sizes_B2: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
    rows: slice = slice(None),
    total: int | None = None,
) -> Tensor:
    """Draw boxes (top, left, height, width) in pixels, float64 (B, 4), as torchvision's RandomResizedCrop does.

    sizes_B2: height and width. Area uniform in `scale`, width / height log-uniform in `ratio`, up to ten tries,
    then the largest central box within `ratio`. Draws the same number of random values whatever the sizes are.
    rows, total: as of `train_view`.
    """
    height_B, width_B = sizes_B2.double().unbind(1)
    draws_KBT = torch.rand((4, total or len(sizes_B2), 10), generator=generator, dtype=torch.float64)[:, rows]
    area_BT = (height_B * width_B)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws_KBT[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratio_BT = torch.exp(low + (high - low) * draws_KBT[1])
    w_BT, h_BT = torch.round(torch.sqrt(area_BT * ratio_BT)), torch.round(torch.sqrt(area_BT / ratio_BT))
    fits_BT = (w_BT > 0) & (w_BT <= width_B[:, None]) & (h_BT > 0) & (h_BT <= height_B[:, None])
    top_BT = torch.floor(draws_KBT[2] * (height_B[:, None] - h_BT + 1))
    left_BT = torch.floor(draws_KBT[3] * (width_B[:, None] - w_BT + 1))
    first_B = fits_BT.int().argmax(1)
    boxes_B4 = torch.stack([top_BT, left_BT, h_BT, w_BT], 2)[torch.arange(len(sizes_B2)), first_B]
    w_B = torch.minimum(width_B, torch.round(height_B * ratio[1]))
    h_B = torch.minimum(height_B, torch.round(width_B / ratio[0]))
    central_B4 = torch.stack([(height_B - h_B) // 2, (width_B - w_B) // 2, h_B, w_B], 1)
    return torch.where(fits_BT.any(1, keepdim=True), boxes_B4, central_B4)


def _whole(images: Sequence[Tensor]) -> Tensor:
    """Height, width, height and width of each image, float64 (B, 4): times the shares of a box, the box in pixels."""
    return torch.tensor([image.shape[-2:] * 2 for image in images], dtype=torch.float64).reshape(-1, 4)


def _resample(
    images: Sequence[Tensor], boxes_B4: Tensor, flips_B: Tensor, size: int, bounded: bool, device: torch.device | None
) -> Tensor:
    """Resample each box (top, left, height, width) to size x size; images of one shape are done together.

    bounded: source pixels outside the box do not count (crop, then resize); otherwise they do (resize, then crop).
    """
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    if device is None:
        device = images[0].device if images else torch.device("cpu")
    parts: list[Tensor] = []
    order: list[int] = []
    for shape, members in groups.items():
        largest = max(math.prod(shape), 3 * size * size)
        step = max(1, _CHUNK.get(device.type, _CHUNK_ELSEWHERE) // largest)
        for chunk in (members[i : i + step] for i in range(0, len(members), step)):
            boxes, flips = send(boxes_B4[chunk].float(), device), send(flips_B[chunk], device)
            rows_BSH = _weights(boxes[:, 0], boxes[:, 2], shape[1], size, bounded, torch.zeros_like(flips)) / 255
            columns_BSW = _weights(boxes[:, 1], boxes[:, 3], shape[2], size, bounded, flips)
            pixels_BCHW = send(torch.stack([images[i] for i in chunk]), device).float()
            wide_BCHS = (pixels_BCHW.flatten(1, 2) @ columns_BSW.mT).reshape(-1, 3, shape[1], size)
            parts.append((rows_BSH[:, None] @ wide_BCHS).clamp_(0, 1))
            order += chunk
    if not parts:
        return torch.empty((0, 3, size, size), device=device)
    whole_BCSS = parts[0] if len(parts) == 1 else torch.cat(parts)
    if order == sorted(order):
        return whole_BCSS
    return whole_BCSS[send(torch.tensor(order).argsort(), device)]


def _weights(start_B: Tensor, length_B: Tensor, source: int, size: int, bounded: bool, flips_B: Tensor) -> Tensor:
    """Weight of each of `source` pixels in each of the `size` pixels of a box; float32 (B, size, source)."""
    scale_B11 = length_B[:, None, None] / size
    position_BS = torch.arange(size, device=start_B.device).expand(len(start_B), -1)
    position_BS = torch.where(flips_B[:, None], size - 1 - position_BS, position_BS)
    centre_BS1 = start_B[:, None, None] + (position_BS[..., None] + 0.5) * scale_B11
    pixel_X = torch.arange(source, device=start_B.device) + 0.5
    weights_BSX = (1 - (pixel_X - centre_BS1).abs() / scale_B11.clamp(min=1)).clamp(min=0)
    if bounded:
        end_B = start_B + length_B
        weights_BSX = weights_BSX * ((pixel_X > start_B[:, None, None]) & (pixel_X < end_B[:, None, None]))
    return weights_BSX / weights_BSX.sum(2, keepdim=True)
