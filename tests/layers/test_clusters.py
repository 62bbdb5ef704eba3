"""K-means: what it must find, with few points and equal ones too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from promptcl.layers.clusters import k_means


def found(points: Tensor, count: int, seed: int = 0) -> Tensor:
    return k_means(points, count, torch.Generator().manual_seed(seed))


def test_heaps_that_lie_apart_are_found() -> None:
    generator = torch.Generator().manual_seed(3)
    heaps = 20 * torch.randn(5, 6, generator=generator)
    points = (heaps[:, None] + torch.randn(5, 30, 6, generator=generator)).flatten(0, 1)
    centres = found(points, 5)
    assert centres.shape == (5, 6)
    nearest = torch.cdist(heaps.double(), centres).argmin(1)
    assert sorted(nearest.tolist()) == list(range(5))
    means = points.double().view(5, 30, 6).mean(1)
    torch.testing.assert_close(centres[nearest], means)
    assert torch.equal(centres, found(points, 5))
    order = torch.randperm(150, generator=generator)
    torch.testing.assert_close(found(points[order], 5).sum(0), centres.sum(0))  # the same ones, in another order


@pytest.mark.parametrize(
    ("rows", "count", "wanted"),
    [
        ([[1.0, 2]], 5, [[1.0, 2]]),
        ([[1.0, 2], [3, 4]], 5, [[1.0, 2], [3, 4]]),
        ([[1.0, 2]] * 9, 5, [[1.0, 2]]),
        ([[1.0, 2]] * 9 + [[5, 6]], 2, [[1.0, 2], [5, 6]]),
        ([[0.0, 0], [0, 2], [10, 0]], 2, [[0.0, 1], [10, 0]]),
        ([[0.0, 0], [0, 2], [10, 0]], 1, [[10 / 3, 2 / 3]]),
    ],
)
def test_few_points_and_equal_ones(rows: list[list[float]], count: int, wanted: list[list[float]]) -> None:
    centres = sorted(found(torch.tensor(rows), count).tolist())
    torch.testing.assert_close(torch.tensor(centres), torch.tensor(wanted))
