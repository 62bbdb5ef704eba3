"""No step of any method waits for the device: nothing asks for a value, or a number of rows, that was just computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import make_config
from told import Told, make
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.learner import Learner
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy
from promptcl.recipes import available
from promptcl.testing.waits import Waits
from promptcl.training import Trainer

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in available("methods")),
    ("l2p", {"diversify": "frequency"}),
    ("l2p", {"diversify": "slots", "vote": "batch"}),
    ("dualprompt", {"vote": "batch"}),
    ("oneprompt", {"outliers": "boundary", "outlier_epochs": 1}),
    ("ranpac", {"adapt": "adapter", "size": 2}),
    ("ranpac", {"adapt": "lora", "size": 2}),
    ("aper", {"adapt": "ssf"}),
]


REPLAYING = {"bic", "co2l", "derpp", "er", "gdumb"}


def waits(learner: Learner, tasks: list[ImageSet]) -> set[str]:
    """What two losses and backward passes in a row wait for while `tasks` are learned: drawing an epoch may wait."""
    trainer, steps = Trainer.run, [set[str]()]

    def counted(self: Trainer, stage: Stage, number: int) -> None:
        loss = stage.loss or self.method.loss

        def watched(backbone: Backbone, batch: Batch) -> Tensor:
            with Waits() as counter:
                found = loss(backbone, batch)
                found.backward(retain_graph=True)  # once more than the loop does
            steps.append(set(counter.found))
            return found

        trainer(self, Stage(**{**vars(stage), "loss": watched}), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", counted)
        for images in tasks:
            learner.learn(images)
    return set().union(*(one & next_one for one, next_one in itertools.pairwise(steps)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_no_step_waits(backbone: Backbone, digits: list[ImageSet], name: str, options: dict[str, Any]) -> None:
    memory = {"per_class": 4} if name in REPLAYING else {}
    learner = Learner(make_config(method={"name": name, **options}, memory=memory), backbone)
    assert not waits(learner, digits[:2])


def test_what_waits_is_found(backbone: Backbone, digits: list[ImageSet]) -> None:
    def loss(backbone: Backbone, batch: Batch) -> Tensor:
        logits_BK = method.logits(backbone, batch)
        if logits_BK.max() > 1e6:
            raise AssertionError
        assert logits_BK.argmax(1).tolist()
        assert len(logits_BK[batch.labels_B == 0]) < 9
        assert len(torch.unique(batch.labels_B)) < 3
        return masked_cross_entropy(logits_BK, batch)

    def story(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield Stage(task.new, loss)

    learner, method = make(backbone, story)
    found = waits(learner, digits[:1])
    assert {name.partition(" in ")[0] for name in found} >= {
        "_local_scalar_dense",
        "tolist",
        "a boolean index",
        "_unique2",
    }
