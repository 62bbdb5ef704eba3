"""Class Gaussians: exact in any parts, and what is drawn has their mean and covariance."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from promptcl.layers import ClassGaussians, Covariance

KINDS = get_args(Covariance)


def data() -> tuple[Tensor, Tensor]:
    """Sixty correlated features of three classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    labels = torch.arange(60) % 3
    return x + 5 * labels[:, None], labels


def made(kind: Covariance, parts: list[Tensor], jitter: float = 1e-4) -> ClassGaussians:
    x, labels = data()
    gaussians = ClassGaussians(4, kind, jitter)
    gaussians.grow(2)
    gaussians.grow(1)
    for rows in parts:
        gaussians.add(x[rows], labels[rows])
    return gaussians


@pytest.mark.parametrize("kind", KINDS)
def test_any_parts_in_any_order_are_the_whole(kind: Covariance) -> None:
    whole = made(kind, [torch.arange(60)])
    for parts in ([torch.tensor([i]) for i in torch.randperm(60)], [torch.arange(59, 20, -1), torch.arange(21)]):
        for mine, theirs in zip(made(kind, parts).buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_covariances_are_those_of_the_features(kind: Covariance) -> None:
    x, labels = data()
    gaussians = made(kind, [torch.arange(60)])
    own = [torch.cov(x[labels == c].double().T) for c in range(3)]
    wanted = {"full": own[1], "diagonal": own[1].diagonal(), "shared": torch.stack(own).mean(0)}[kind]
    torch.testing.assert_close(gaussians.covariance(1), wanted)
    torch.testing.assert_close(gaussians.mean_KD[1], x[labels == 1].double().mean(0))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_has_mean_and_variance(kind: Covariance) -> None:
    """Within five standard errors, for 100,000 rows; the same for a class whatever others there are."""
    gaussians, rows = made(kind, [torch.arange(60)], jitter=0), 100_000
    features, labels = gaussians.draw(rows, seed=3)
    covariance = gaussians.covariance(2)
    variance = covariance if covariance.ndim == 1 else covariance.diagonal()
    drawn = features[labels == 2].double()
    assert ((drawn.mean(0) - gaussians.mean_KD[2]).abs() < 5 * (variance / rows).sqrt()).all()
    assert ((drawn.var(0) - variance).abs() < 5 * variance * (2 / rows) ** 0.5).all()
    gaussians.grow(2)
    assert torch.equal(gaussians.draw(rows, seed=3)[0], features)  # classes without images are not drawn
    assert not torch.equal(gaussians.draw(rows, seed=4)[0], features)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_that_do_not_fit_are_made_when_they_are_drawn_with(kind: Covariance) -> None:
    """The same bits whether all are kept, one, or none; one of all classes is kept in any case."""
    gaussians = made(kind, [torch.arange(60)])
    wanted, _ = gaussians.draw(7, seed=1)
    one = 8 * 4 * (1 if kind == "diagonal" else 4)
    for room, kept in ((3 * one, 3), (2 * one - 1, 1), (0, 0)):
        factors = gaussians.factors(room)
        assert [factor is not None for factor in factors] == [kind == "shared" or i < kept for i in range(3)]
        assert torch.equal(gaussians.draw(7, 1, factors)[0], wanted)
    assert gaussians.draw(7, 1, gaussians.factors())[0].equal(wanted)
    assert made(kind, []).draw(7, 1)[0].shape == (0, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_few_images_can_be_drawn_from(kind: Covariance) -> None:
    one = made(kind, [torch.tensor([0])])
    features, labels = one.draw(1000, 0)
    assert labels.unique().tolist() == [0]
    torch.testing.assert_close(features.double().mean(0), one.mean_KD[0], rtol=0, atol=0.01)


def test_without_variance_the_means_are_drawn() -> None:
    one = made("diagonal", [torch.tensor([0])], jitter=0)
    assert torch.equal(one.draw(5, 0)[0], one.mean_KD[:1].float().expand(5, 4))
