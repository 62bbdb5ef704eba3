"""AnaCP: prototypes, the layer in any order, what is kept."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from helpers import make_config

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.layers import SymmetricSum
from promptcl.layers.spread import prototypes, solved
from promptcl.learner.learner import Learner
from promptcl.methods.anacp import Model


def make(backbone: Backbone, *tasks: ImageSet, **method: Any) -> Learner:
    settings = {"name": "anacp", "width": 40, "ridge": 0.1, **method}
    learner = Learner(make_config(method=settings, eval={"batch_size": 1}), backbone)
    for images in tasks:
        learner.learn(images)
    return learner


def test_prototypes_are_spread() -> None:
    """With alpha 0 they are the class means; with 1 they are less alike; one class stays where it is."""
    generator = torch.Generator().manual_seed(0)
    mean_KD = torch.randn(5, 8, generator=generator, dtype=torch.float64) + 2
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    within = root @ root.T + torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(prototypes(mean_KD, within, 0.0), mean_KD)
    alike = [F.normalize(prototypes(mean_KD, within, alpha)) for alpha in (0.0, 1.0)]
    before, after = ((p @ p.T).abs().sum() for p in alike)
    assert after < before
    torch.testing.assert_close(prototypes(mean_KD[:1], within, 1.0), mean_KD[:1])


def test_any_order_gives_the_same_layer(backbone: Backbone, digits: list[ImageSet]) -> None:
    """To 1e-6, and the pooled covariance within classes to 1e-12."""
    one, other = (make(backbone, *(digits[i] for i in order)) for order in ((0, 1, 2), (2, 1, 0)))
    left, right = one.method, other.method
    assert isinstance(left, Model)
    assert isinstance(right, Model)
    torch.testing.assert_close(right.layer_HMD, left.layer_HMD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(right.gaussians.covariance(), left.gaussians.covariance(), rtol=0, atol=1e-12)


def test_without_prototypes_it_is_ridge_regression() -> None:
    """Onto one-hot targets: the normal equations of random features."""
    generator = torch.Generator().manual_seed(0)
    x = F.gelu(torch.randn(30, 6, generator=generator, dtype=torch.float64))
    y = F.one_hot(torch.arange(30) % 3).double()
    wanted = torch.linalg.solve(x.T @ x + 0.5 * torch.eye(6, dtype=torch.float64), x.T @ y)
    torch.testing.assert_close(solved(x.T @ x, x.T @ y @ torch.eye(3, dtype=torch.float64), 0.5), wanted)


def test_one_regression_onto_one_hot_targets_is_ranpac_with_gelu(backbone: Backbone, digits: list[ImageSet]) -> None:
    """From the sums that the method keeps, as from all rows at once."""
    learner = make(backbone, *digits[:2], heads=1, normalise=False)
    method = learner.method
    assert isinstance(method, Model)
    rows, labels = list[torch.Tensor](), list[torch.Tensor]()
    for images in digits[:2]:
        labels.append(learner.labels(images))
        rows += [batch.query_BD for batch in learner.batches.evaluation(images, labels[-1], 1)]
    lifted_NM = F.gelu(torch.cat(rows) @ method.directions_HDM[0]).double()
    targets_NK = F.one_hot(torch.cat(labels), 4).double()
    square = lifted_NM.T @ lifted_NM + 0.1 * torch.eye(40, dtype=torch.float64)
    wanted = torch.linalg.solve(square, lifted_NM.T @ targets_NK)
    square_MM = cast(SymmetricSum, method.squares[0]).value
    found = solved(square_MM, method.sum_KHM.value[:, 0].T, 0.1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_rows_are_refused(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"method\.rows=5: this method keeps sums alone; write method\.rows=0"):
        make(backbone, rows=5)
