"""The views against Pillow and torchvision, which define what they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from promptcl.config.schema import DataConfig
from promptcl.data import augment
from promptcl.data.augment import eval_view, random_boxes, train_view

FLOAT32 = 2e-5  # largest difference allowed between two float computations of a pixel in [0, 1]


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def pillow_resize(image: Tensor, side: int) -> Tensor:
    """Pillow's bilinear resize to side x side, in floats."""
    planes = [Image.fromarray(plane.float().numpy()) for plane in image]  # mode F
    resized = [np.array(plane.resize((side, side), Image.Resampling.BILINEAR)) for plane in planes]
    return torch.from_numpy(np.stack(resized)) / 255


@pytest.mark.parametrize("shape", [(32, 32), (28, 41), (300, 257), (256, 256), (640, 500)])
def test_eval_view_is_pillow_resize_and_central_crop(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    expected = pillow_resize(image, 256)[:, 16:240, 16:240]
    torch.testing.assert_close(eval_view([image], 224, 0.875)[0], expected, atol=FLOAT32, rtol=0)


def test_eval_view_without_crop_is_within_one_grey_level_of_pillow_on_bytes() -> None:
    image = noise(90, 70)
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 48), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    # Pillow rounds to bytes after each of its two passes
    torch.testing.assert_close(eval_view([image], 48, 1.0)[0], expected, atol=1.01 / 255, rtol=0)


def test_eval_view_of_own_size_changes_nothing() -> None:
    image = noise(40, 40)
    torch.testing.assert_close(eval_view([image], 40, 1.0)[0], image / 255, atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", [16, 64])
def test_train_view_is_torchvision_resized_crop_and_flip(size: int) -> None:
    """Up- and downsampling, mixed sizes in one batch, flipped and not."""
    shapes = [(32, 32), (28, 41), (32, 32), (300, 257), (28, 41), (17, 90)] * 4
    images = [noise(*shape, seed=i) for i, shape in enumerate(shapes)]
    views = train_view(images, size, DataConfig(), torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    boxes = random_boxes(torch.tensor(shapes), (0.05, 1.0), (3 / 4, 4 / 3), again).int().tolist()
    flips = (torch.rand(len(images), generator=again) < 0.5).tolist()
    assert {True, False} == set(flips)
    for image, view, box, flip in zip(images, views, boxes, flips, strict=True):
        expected = F.resized_crop(image / 255, *box, size=[size, size], antialias=True)
        expected = F.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(view, expected, atol=FLOAT32, rtol=0)


def test_generator_alone_decides() -> None:
    images = [noise(32, 32)] * 4
    first, same, other = (train_view(images, 24, DataConfig(), torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])  # each image has its own view


def test_other_images_of_the_batch_do_not_matter() -> None:
    images = [noise(32, 32, 1), noise(50, 20, 2), noise(32, 32, 3)]
    views = eval_view(images, 24, 0.9)
    for image, view in zip(images, views, strict=True):
        torch.testing.assert_close(view, eval_view([image], 24, 0.9)[0], atol=1e-6, rtol=0)


def test_resampling_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(32, 32, i) for i in range(7)]
    whole = train_view(images, 24, DataConfig(), torch.Generator().manual_seed(0))
    monkeypatch.setattr(augment, "_CHUNK", {"cpu": 2 * 3 * 32 * 32})
    pieces = train_view(images, 24, DataConfig(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole, pieces, atol=1e-6, rtol=0)


def test_flip_is_the_evaluation_view_or_its_mirror_image() -> None:
    images = [noise(30, 40, i) for i in range(16)]
    plain = eval_view(images, 24, 0.875)
    views = train_view(images, 24, DataConfig(augment="flip"), torch.Generator().manual_seed(0))
    flipped = [bool((view - image).abs().max() > 0.1) for view, image in zip(views, plain, strict=True)]
    assert 0 < sum(flipped) < 16
    expected = torch.stack([image.flip(2) if flip else image for image, flip in zip(plain, flipped, strict=True)])
    torch.testing.assert_close(views, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [DataConfig(augment="none"), DataConfig(augment="flip", hflip=False)])
def test_no_augmentation_is_the_evaluation_view(config: DataConfig) -> None:
    images = [noise(30, 40, i) for i in range(4)]
    assert torch.equal(train_view(images, 24, config, torch.Generator()), eval_view(images, 24, config.eval_crop))


def test_hflip_off_keeps_the_orientation() -> None:
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(3, 32, 32)  # brighter to the right
    views = train_view([ramp] * 32, 16, DataConfig(hflip=False), torch.Generator().manual_seed(0))
    assert (views[..., -1] >= views[..., 0]).all()
    views = train_view([ramp] * 32, 16, DataConfig(), torch.Generator().manual_seed(0))
    assert (views[..., -1] < views[..., 0]).any()


def test_values_stay_in_range_and_empty_batches_are_empty() -> None:
    for side in (20, 37, 100, 300):  # sums of weights are 1 only up to rounding
        white = torch.full((3, side, side), 255, dtype=torch.uint8)
        views = train_view([white] * 8, 50, DataConfig(), torch.Generator().manual_seed(0))
        assert views.max() <= 1
        torch.testing.assert_close(views, torch.ones_like(views), atol=1e-6, rtol=0)
    assert eval_view([], 24, 0.9).shape == train_view([], 24, DataConfig(), torch.Generator()).shape == (0, 3, 24, 24)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=8),
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
    seed=st.integers(0, 2**31),
)
def test_boxes_are_whole_pixels_inside_the_image(
    sizes: list[tuple[int, int]], low: float, high: float, seed: int
) -> None:
    scale = (min(low, high), max(low, high))
    boxes = random_boxes(torch.tensor(sizes), scale, (3 / 4, 4 / 3), torch.Generator().manual_seed(seed))
    assert torch.equal(boxes, boxes.round())
    top, left, height, width = boxes.unbind(1)
    limits = torch.tensor(sizes)
    assert ((height >= 1) & (width >= 1) & (top >= 0) & (left >= 0)).all()
    assert ((top + height <= limits[:, 0]) & (left + width <= limits[:, 1])).all()


@pytest.mark.parametrize("shape", [(10, 500), (500, 10), (40, 32)])
def test_box_without_a_fit_is_torchvisions_central_one(shape: tuple[int, int]) -> None:
    # all of the area in an aspect that the image does not have: all ten tries fail
    scale, ratio = (1.0, 1.0), (0.999999, 1.000001)
    expected = RandomResizedCrop.get_params(torch.empty(3, *shape), list(scale), list(ratio))
    boxes = random_boxes(torch.tensor([shape]), scale, ratio, torch.Generator().manual_seed(0))
    assert tuple(boxes[0].int().tolist()) == expected


def test_boxes_reach_every_border() -> None:
    boxes = random_boxes(torch.tensor([(6, 6)] * 500), (0.1, 0.9), (1.0, 1.0001), torch.Generator().manual_seed(0))
    top, left, height, width = boxes[boxes[:, 2] == 5].unbind(1)
    assert set(top.tolist()) == set(left.tolist()) == {0, 1}  # a box of 5 in 6 has two places
    assert set(height.tolist()) == set(width.tolist()) == {5}


def test_boxes_are_distributed_as_torchvisions() -> None:
    height, width, count = 60, 100, 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, [0.05, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    sizes = torch.tensor([(height, width)] * count)
    ours = random_boxes(sizes, (0.05, 1.0), (3 / 4, 4 / 3), torch.Generator().manual_seed(0))
    expected = torch.tensor(theirs, dtype=torch.float64)
    error = expected.std(0) * (2 / count) ** 0.5  # standard error of the difference of two means
    assert ((ours.mean(0) - expected.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(ours.std(0), expected.std(0), rtol=0.06, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_views_on_cuda_equal_those_on_the_cpu() -> None:
    images = [noise(32, 32, 1), noise(50, 20, 2), noise(32, 32, 3)]
    here = train_view(images, 24, DataConfig(), torch.Generator().manual_seed(0))
    there = train_view(images, 24, DataConfig(), torch.Generator().manual_seed(0), torch.device("cuda"))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, atol=FLOAT32, rtol=0)
