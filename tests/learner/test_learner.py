"""Learning, predicting and evaluating in one process, on real digits with a small timm ViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_config, same_state

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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": {"holdout": 0.3}},
        {"memory": {"per_class": 2, "batch_size": 3}},
        {"train": {"holdout": 0.3}, "memory": {"per_class": 2}},
    ],
    ids=["plain", "held out", "memory", "both"],
)
def test_statistics_are_of_the_images_trained_on(
    changes: dict[str, Any], backbone: Backbone, digits: list[ImageSet]
) -> None:
    """Not of those that are held out, nor of those that the memory is filled from, and from task to task anew."""
    learner = Learner(make_config(**changes), backbone)
    for images in digits[:2]:
        record = learner.learn(images)
        counts = record.statistics["prompts"]
        assert isinstance(counts, list)
        assert len(counts) == 4
        assert sum(counts) == 2 * record.images  # each image chooses two
        assert isinstance(record.statistics["cosine"], float)
        assert record.warnings == []
        held = sum(number for _, number in record.held_out.values())
        assert (held > 0) == ("train" in changes)
        assert "memory" in changes or record.images == len(images) - held
    found = learner.evaluate(digits[0]).statistics["prompts"]
    assert isinstance(found, list)
    assert sum(found) == 2 * 16


def test_a_method_that_counts_nothing_has_no_statistics(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = Learner(make_config(method={"name": "ncm"}), backbone)
    record = learner.learn(digits[0])
    assert record.statistics == {}
    assert record.images == 16  # nothing is trained: each image was seen once
    assert learner.evaluate(digits[0]).statistics == {}


def test_a_task_tells_what_the_user_should_know(backbone: Backbone, digits: list[ImageSet]) -> None:
    method = {"name": "l2p", "pool_size": 3, "top_k": 2, "prompt_length": 2, "diversify": "slots"}
    learner = Learner(make_config(method=method), backbone)
    assert learner.learn(digits[0]).warnings == []
    (sentence,) = learner.learn(digits[1]).warnings
    assert sentence.startswith("task 2 selects freely: its slots 2 to 3 are beyond the pool of 3")


ALONE = "task 2 has one class, which train.mask=true compares with no other, so cross-entropy trains nothing"


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({}, True),
        ({"method": {"name": "coda"}}, True),
        ({"method": {"name": "oneprompt", "outliers": "boundary", "outlier_epochs": 1}}, True),  # once, of two stages
        ({"train": {"mask": False}}, False),
        ({"memory": {"per_class": 2}}, False),  # replayed images are compared with all classes
        ({"scenario": "gaussian"}, False),
        ({"method": {"name": "ncm"}}, False),
        ({"method": {"name": "co2l"}}, False),  # its loss has no mask
    ],
    ids=str,
)
def test_a_class_alone_under_the_mask_teaches_nothing_and_that_is_said(
    changes: dict[str, Any], warns: bool, backbone: Backbone, digits: list[ImageSet]
) -> None:
    learner = Learner(make_config(**changes), backbone)
    assert learner.learn(digits[0].of_classes(["0"])).warnings == []
    said = learner.learn(digits[0].of_classes(["1"])).warnings
    assert [sentence.startswith(ALONE) for sentence in said if "one class" in sentence] == ([True] if warns else [])
    assert not any("one class" in sentence for sentence in learner.learn(digits[1]).warnings)


def test_images_with_labels_and_a_name(backbone: Backbone, digits: list[ImageSet]) -> None:
    """`labels` beside a list of images, and the name that the history gives to the task."""
    whole, parts = Learner(make_config(), backbone), Learner(make_config(), backbone)
    whole.learn(digits[0])
    arrays = [digits[0].image(i).permute(1, 2, 0).numpy() for i in range(len(digits[0]))]
    parts.learn(arrays, [digits[0].classes[k] for k in digits[0].labels], name="zero and one")
    assert [task.name for task in whole.history + parts.history] == ["task 1", "zero and one"]
    assert same_state(whole, parts)


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
