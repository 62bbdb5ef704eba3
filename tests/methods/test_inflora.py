"""InfLoRA: updates stay out of what earlier tasks take."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from helpers import make_config
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.layers.subspace import directions, taken
from promptcl.learner.learner import Learner


def make(backbone: Backbone, *tasks: ImageSet, **method: Any) -> Learner:
    learner = Learner(make_config(method=method), backbone)
    for images in tasks:
        learner.learn(images)
    return learner


def test_inflora_leaves_keys_and_values_of_old_inputs(backbone: Backbone, digits: list[ImageSet]) -> None:
    """A trained model, all of whose energy is taken: block 0 reads the same inputs in every task."""
    learner = make(backbone, digits[0].select([0, 1, 8]), name="inflora", energy=1 - 1e-6, rank=4)
    method = cast(Any, learner.method)
    images = digits[0].select([0, 1, 8])
    (batch,) = learner.batches.evaluation(images, learner.labels(images), 1)
    seen = list[Tensor]()
    hook = backbone.vit.blocks[0].norm1.register_forward_hook(lambda module, x, y: seen.append(y.detach()))
    backbone(batch.images_BCHW)
    hook.remove()
    before = method.merged_2LDD[:, 0].clone()
    learner.learn(digits[1])
    change_2DD = method.merged_2LDD[:, 0] - before
    assert change_2DD.abs().max() > 1e-4  # it was trained,
    old = torch.einsum("bnd,kod->kbno", seen[0], change_2DD).abs().max()
    assert old < 1e-3 * change_2DD.abs().max() * seen[0].abs().max()  # and nothing old is seen otherwise


def test_inflora_stays_out_of_what_is_taken() -> None:
    """A A^T = I / 3, and A x = 0 for old inputs of low rank, which take all of their space."""
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(rank, 12, generator=generator, dtype=torch.float64) for rank in (3, 5))
    space = taken(old.T @ old, torch.zeros(12, 12, dtype=torch.float64), energy=1 - 1e-12)
    assert space.trace().item() == pytest.approx(3)
    torch.testing.assert_close(old @ space, old)
    down = directions(new.T @ new, space, rank=4)
    torch.testing.assert_close(down @ down.T, torch.eye(4, dtype=torch.float64) / 3)
    assert (down @ old.T).abs().max() < 1e-10
    up = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    assert (up @ down @ old.T).abs().max() < 1e-9  # so keys and values of old inputs stay, whatever is trained
    assert (up @ down @ new.T).abs().max() > 0.1
    more = taken(new.T @ new, space, energy=1 - 1e-12)
    assert more.trace().item() == pytest.approx(8)
    assert torch.equal(taken(old.T @ old, more, energy=0.9), more)


@pytest.mark.parametrize("energy", [1.0, 1 - 1e-7])
def test_inflora_never_writes_into_what_is_taken(energy: float) -> None:
    """Also where less is left outside than the rank asks for, or nothing: those rows of A are zero."""
    generator, space = torch.Generator().manual_seed(0), torch.zeros(12, 12)  # float32, as the method keeps it
    spread, trace = torch.logspace(0, -2, 12, dtype=torch.float64), 0.0
    for task in range(4):
        x = torch.randn(200, 12, generator=generator, dtype=torch.float64) * spread
        down = directions(x.T @ x / 200, space.double(), rank=4)
        assert (down @ space.double()).abs().max() < 1e-4
        assert down.any(1).sum() == min(4, 12 - round(trace))
        space = taken(x.T @ x / 200, space.double(), energy).float()
        trace = space.trace().item()
        assert torch.linalg.eigvalsh(space).max() < 1 + 1e-4, task  # a projector
    assert trace == pytest.approx(12)


def test_inflora_says_that_nothing_is_left(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, digits[0], name="inflora", energy=1.0)
    said = learner.learn(digits[1]).warnings
    assert said == ["task 2 finds no direction that earlier ones leave, and trains the head alone"]
