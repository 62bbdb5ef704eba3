"""Learning, predicting and evaluating in one process, on real digits with a small timm ViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_config

from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split
from promptcl.data.stream import class_incremental
from promptcl.errors import UserError
from promptcl.learner.learner import Learner


def state(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.method.state_dict().items()}


def test_the_mask_keeps_other_classes_bit_identical(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(train={"epochs": 2}), backbone)
    frozen = {name: p.clone() for name, p in backbone.state_dict().items()}
    learner.learn(digits[0])
    before = state(learner)
    learner.learn(digits[1])
    after = state(learner)
    assert torch.equal(after["head.weight_KD"][:2], before["head.weight_KD"])
    assert torch.equal(after["head.bias_K"][:2], before["head.bias_K"])
    assert after["head.weight_KD"][2:].abs().sum() > 0
    assert not torch.equal(after["pool.prompts_MLD"], before["pool.prompts_MLD"])
    assert all(torch.equal(p, frozen[name]) for name, p in backbone.state_dict().items())


def test_without_the_mask_old_rows_move(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(train={"mask": False}), backbone)
    learner.learn(digits[0])
    before = state(learner)
    learner.learn(digits[1])
    assert not torch.equal(state(learner)["head.weight_KD"][:2], before["head.weight_KD"])


def test_known_classes_get_more_training_and_no_new_rows(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(), backbone)
    learner.learn(digits[0])
    before = state(learner)
    learner.learn(digits[0])
    assert learner.classes == list(digits[0].classes)
    assert not torch.equal(state(learner)["head.weight_KD"], before["head.weight_KD"])


def test_prompts_never_trained_stay_at_their_initial_values(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method={"name": "l2p", "train_prompts": False}), backbone)
    before = state(learner)
    learner.learn(digits[0])
    after = state(learner)
    assert torch.equal(after["pool.prompts_MLD"], before["pool.prompts_MLD"])
    assert not torch.equal(after["pool.keys_MD"], before["pool.keys_MD"])


def test_predictions_do_not_depend_on_the_evaluation_batch_size(backbone: Backbone, digits: list[ImageSet]) -> None:
    for method in ({"name": "l2p"}, {"name": "l2p", "vote": "batch", "vote_size": 5}):
        found = []
        for size in (1, 3, 16):
            learner = Learner(make_config(method=method, eval={"batch_size": size}), backbone)
            learner.learn(digits[0])
            found.append([[name for name, _ in row.top] for row in learner.predict(digits[0], top=2)])
        assert found[0] == found[1] == found[2]


def test_probabilities_are_sorted_and_sum_to_one(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(), backbone)
    learner.learn(digits[0])
    for row in (prediction.top for prediction in learner.predict(digits[0], top=9)):
        values = [p for _, p in row]
        assert len(values) == 2
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1)


def test_an_unknown_class_in_evaluation_is_named(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(), backbone)
    learner.learn(digits[0])
    with pytest.raises(UserError, match="'2' was never learned"):
        learner.evaluate(digits[1])


def test_steps_of_the_release() -> None:
    """5,000 images, batch 128, remainder dropped, 5 epochs: 195 steps (as in the release)."""
    config = make_config(train={"batch_size": 128, "epochs": 5, "drop_last": True})
    assert 5 * Learner(config).batches.steps_per_epoch(5000) == 195


@pytest.mark.slow
def test_pretrained_features_and_the_mask_matter(tmp_path: Path) -> None:
    """Real digits, the ViT of this package: a learner at chance would not pass."""
    settings: dict[str, Any] = {
        "tasks": 5,
        "backbone": {
            "weights": "embedded",
            "name": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3},
        },
        "data": {"train_per_class": 20, "test_per_class": 10, "augment": "none"},
        "train": {"epochs": 10},
    }
    frozen = Backbone.create(make_config(**settings).backbone)
    accuracy = {}
    for name, mask in (("ncm", True), ("ridge", True), ("linear", False)):
        changes = {**settings, "method": {"name": name}, "train": {"epochs": 10, "mask": mask}}
        learner = Learner(make_config(**changes), frozen)
        tasks = class_incremental(load_split(learner.config.data), 5)
        for task in tasks:
            learner.learn(task.train)
        accuracy[name] = sum(learner.evaluate(task.test).accuracy for task in tasks) / 5
    assert accuracy["ncm"] > 40
    assert accuracy["ridge"] > 50
    assert accuracy["linear"] < 35  # without the mask only the last task is left


def test_class_names_that_cannot_be() -> None:
    learner = Learner(make_config())
    for name in ("unknown", "\x1b[31mred"):
        with pytest.raises(UserError, match=r"another name|rename it"):
            learner.learn([np.zeros((8, 8, 3), np.uint8)] * 2, labels=[name, "b"])
