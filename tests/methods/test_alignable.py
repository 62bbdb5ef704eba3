"""Methods with prompts whose head may be aligned: the head alone is, and only where it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import make_config

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.methods._base import Stage
from promptcl.recipes import load_config
from promptcl.training import Trainer

METHODS: dict[str, dict[str, Any]] = {
    "coda": {"components": 3},
    "osprompt": {"components": 3},
    "vq": {},
    "l2p_prefix": {"pool_size": 4, "top_k": 2},
    "dualprompt": {},
    "oneprompt": {"layout": [[0, 2]]},
}
ALIGNED = {"align_epochs": 1, "align_samples": 32, "covariance": "diagonal"}


def make(backbone: Backbone, *tasks: ImageSet, **changes: Any) -> Learner:
    learner = Learner(make_config(**changes), backbone)
    for images in tasks:
        learner.learn(images)
    return learner


@pytest.mark.parametrize("name", METHODS)
def test_alignment_moves_the_head_alone(name: str, backbone: Backbone, digits: list[ImageSet]) -> None:
    """From the second task on; what was trained before it is the same to the bit; without it nothing is kept."""
    plain = make(backbone, *digits[:2], method={"name": name, **METHODS[name]})
    aligned = make(backbone, digits[0], method={"name": name, **METHODS[name], **ALIGNED})
    first = aligned.method.state_dict()["head.weight_KD"].clone()
    aligned.learn(digits[1])
    before, after = plain.method.state_dict(), aligned.method.state_dict()
    added = {key for key in after if key not in before}
    assert added
    assert all(key.startswith("alignment.") for key in added)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"head.weight_KD", "head.bias_K"}
    assert torch.equal(before["head.weight_KD"][:2], first)  # one task is not aligned
    assert not torch.equal(after["head.weight_KD"][:2], first)


def test_held_out_images_join_the_gaussians(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, digits[0], method={"name": "vq", **ALIGNED}, train={"holdout": 0.25})
    count = learner.method.state_dict()["alignment.gaussians.count_K.value"]
    assert count.sum().item() == len(digits[0])


def test_the_rate_falls_by_a_half_cosine(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Whatever the schedule of the training is: the last steps move a head less than the first."""
    rates = list[float]()
    learner = make(backbone, digits[0], method={"name": "vq", **ALIGNED}, train={"schedule": "constant"})
    run = Trainer.run

    def watch(self: Trainer, stage: Stage, number: int) -> None:
        if stage.rate is not None:
            rates.extend(stage.rate(share) for share in (0.0, 0.5, 1.0))
        run(self, stage, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", watch)
        learner.learn(digits[1])
    assert rates == pytest.approx([1, 0.5, 0])


def test_it_needs_to_know_where_tasks_end(backbone: Backbone, digits: list[ImageSet]) -> None:
    make(backbone, digits[0], scenario="gaussian", method={"name": "vq"})
    with pytest.raises(UserError, match=r"where tasks end .*; write method\.align_epochs=0$"):
        make(backbone, digits[0], scenario="gaussian", method={"name": "vq", **ALIGNED})


def test_how_to_align_is_refused_where_nothing_is_aligned() -> None:
    with pytest.raises(UserError, match=r"align_epochs=5"):
        load_config("coda", ["method.covariance=diagonal"])
