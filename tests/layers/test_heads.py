"""Heads: a linear one that grows, class means, ridge regression with rare classes."""

from __future__ import annotations

import torch

from promptcl.layers.heads import ClassMeans, GrowingCosine, GrowingLinear
from promptcl.layers.prompts import cosine
from promptcl.layers.ridge import RidgeHead
from promptcl.runtime.seeding import task_generator


def test_growing_keeps_old_rows() -> None:
    head = GrowingLinear(4, "uniform")
    head.grow(3, task_generator(1, 0, "x"))
    before = head.weight_KD.detach().clone()
    head.grow(2, task_generator(1, 1, "x"))
    assert head.weight_KD.shape == (5, 4)
    assert torch.equal(head.weight_KD[:3], before)
    assert head.weight_KD[3:].abs().max() <= 0.5


def test_class_means_are_means() -> None:
    means, features = ClassMeans(4), torch.randn(6, 4)
    means.grow(2)
    means.add(features[:4], torch.tensor([0, 0, 1, 1]))
    means.add(features[4:], torch.tensor([0, 1]))
    expected = torch.stack([features[[0, 1, 4]].mean(0), features[[2, 3, 5]].mean(0)])
    torch.testing.assert_close(means(features), cosine(features, expected))


def test_balanced_ridge_finds_rare_classes() -> None:
    """Two classes a unit apart, 500 and 5 examples: without balance the rare one is hardly ever named."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn((2, 2000, 4), generator=generator)
    points[1, :, 0] += 2
    found = {}
    for balance in (False, True):
        head = RidgeHead(4, 0.1, "each")
        head.grow(2)
        for label, count in ((0, 500), (1, 5)):
            head.add(points[label, :count], torch.full((count,), label))
        head.solve(balance)
        found[balance] = [(head(points[label, 500:]).argmax(1) == label).float().mean().item() for label in (0, 1)]
    assert found[False][1] < 0.1
    assert min(found[True]) > 0.6
    even = [RidgeHead(4, 0.1, "each"), RidgeHead(4, 0.1, "each")]
    for head, balance in zip(even, (False, True), strict=True):
        head.grow(2)
        head.add(points[:, :50].flatten(0, 1), torch.arange(2).repeat_interleave(50))
        head.solve(balance)
    torch.testing.assert_close(even[0].weight_KD, even[1].weight_KD)
    torch.testing.assert_close(even[0].bias_K, even[1].bias_K)


def test_cosines_ignore_lengths_and_old_rows_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    sharp, plain = GrowingCosine(8, 0.1), GrowingCosine(8)
    x, w = torch.randn(5, 8, generator=generator), torch.randn(3, 8, generator=generator)
    for head in (sharp, plain):
        head.grow(3, generator)
        assert head.weight_KD.abs().max() <= 8**-0.5
        with torch.no_grad():
            head.weight_KD.copy_(w)
        head.grow(2, generator)
        assert torch.equal(head.weight_KD[:3], w)
    wanted = torch.nn.functional.cosine_similarity(x[:, None], w, dim=2)
    torch.testing.assert_close(sharp(3 * x)[:, :3], wanted / 0.1)
    assert sharp(x).abs().max() <= 10
    torch.testing.assert_close(plain(x)[:, :3], wanted * x.norm(dim=1, keepdim=True))
