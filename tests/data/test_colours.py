"""Other colours for training views (`data.jitter`), against torchvision, which defines each change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from promptcl.config.schema import DataConfig
from promptcl.data.augment import train_view
from promptcl.data.colours import recoloured
from promptcl.errors import UserError
from promptcl.recipes.load import load_config


def views(count: int, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_changes_are_those_of_torchvision_in_a_random_order() -> None:
    before = views(200)
    after = recoloured(before, torch.Generator().manual_seed(1))
    draws = torch.rand((200, 12), generator=torch.Generator().manual_seed(1)).tolist()
    orders = set()
    for view, found, (changed, grey, _, _, b, c, s, h, *order) in zip(before, after, draws, strict=True):
        expected = view
        ranks = tuple(torch.tensor(order).argsort().tolist())
        if changed < 0.8:
            orders.add(ranks)
            for name in ranks:
                if name == 0:
                    expected = F.adjust_brightness(expected, 0.6 + 0.8 * b)
                elif name == 1:
                    expected = F.adjust_contrast(expected, 0.6 + 0.8 * c)
                elif name == 2:
                    expected = F.adjust_saturation(expected, 0.6 + 0.8 * s)
                else:
                    expected = F.adjust_hue(expected, -0.1 + 0.2 * h)
        if grey < 0.2:
            expected = F.rgb_to_grayscale(expected, num_output_channels=3)
        torch.testing.assert_close(found, expected)
    assert len(orders) > 20  # of 24
    assert 0 <= after.min() <= after.max() <= 1
    grey = (after[:, 0] == after[:, 1]).flatten(1).all(1) & (after[:, 0] == after[:, 2]).flatten(1).all(1)
    assert 0.1 < grey.float().mean() < 0.3
    same = (after == before).flatten(1).all(1).float().mean()
    assert 0.08 < same < 0.25  # 0.2 * 0.8


def test_large_views_are_blurred_half_of_the_time() -> None:
    before = views(40, 36)[:, :1].expand(-1, 3, -1, -1).contiguous()  # grey: hue, saturation and grey change nothing
    after = recoloured(before, torch.Generator().manual_seed(2))
    rough = [(view[:, 1:] - view[:, :-1]).abs().mean() / (view.std() + 1e-6) for view in after[:, 0]]
    plain = [(view[:, 1:] - view[:, :-1]).abs().mean() / (view.std() + 1e-6) for view in before[:, 0]]
    smoother = sum(bool(a < 0.97 * b) for a, b in zip(rough, plain, strict=True))
    assert 10 <= smoother <= 28


def test_a_process_gets_the_colours_of_its_rows() -> None:
    before = views(6, 36)
    whole = recoloured(before, torch.Generator().manual_seed(3))
    part = recoloured(before[2:5], torch.Generator().manual_seed(3), slice(2, 5), 6)
    assert torch.equal(whole[2:5], part)
    assert recoloured(before[:0], torch.Generator().manual_seed(3), slice(6, 6), 6).shape == (0, 3, 36, 36)


def test_only_where_it_is_asked_for() -> None:
    images = [torch.randint(0, 256, (3, 20, 20), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)] * 8
    off, on = (
        train_view(images, 16, DataConfig(jitter=jitter), torch.Generator().manual_seed(5)) for jitter in (False, True)
    )
    torch.testing.assert_close(on, recoloured(off, _after_crops(8)))
    assert not torch.equal(on, off)
    with pytest.raises(UserError, match=r"data\.jitter=true is not read with data\.augment=none"):
        load_config("er", ["data.jitter=true", "data.augment=none"])
    with pytest.raises(UserError, match=r"data\.jitter=true is not read with method\.name=ncm"):
        load_config("lite", ["data.jitter=true", "method.name=ncm"])


def _after_crops(count: int) -> torch.Generator:
    """The generator as crops and flips leave it."""
    generator = torch.Generator().manual_seed(5)
    torch.rand((4, count, 10), generator=generator, dtype=torch.float64)
    torch.rand(count, generator=generator)
    return generator
