"""The one training loop and the experiment over it, end to end on real digits with a small timm ViT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Config
from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split
from promptcl.data.stream import class_incremental
from promptcl.errors import UserError
from promptcl.experiments.progress import QuietUi
from promptcl.experiments.run import run
from promptcl.learner.learner import Learner

SILENT = QuietUi(Path("."), write=lambda line: None)


def make_config(**changes: Any) -> Config:
    settings: dict[str, Any] = {
        "tasks": 2,
        "seed": 1,
        "backbone": {"name": "test_vit", "weights": "random", "image_size": 32},
        "data": {"name": "mnist5k", "train_per_class": 8, "test_per_class": 4, "crop_scale": [0.5, 1.0]},
        "train": {"epochs": 1, "batch_size": 8, "lr": 0.01},
        "eval": {"batch_size": 16},
        "method": {"name": "l2p", "pool_size": 4, "top_k": 2, "prompt_length": 2},
    }
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) and key != "method" else value
    return Config.model_validate(settings)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.create(make_config().backbone)


@pytest.fixture(scope="module")
def digits() -> list[ImageSet]:
    config = make_config()
    return [t.train for t in class_incremental(load_split(config.data), 5, "official", 0)]


def state(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.method.state_dict().items()}


def timeless(results: Any) -> Any:
    """Results without what a clock says."""
    if isinstance(results, dict):
        return {k: timeless(v) for k, v in results.items() if "second" not in k}
    return [timeless(v) for v in results] if isinstance(results, list) else results


def test_results_say_what_they_promise_and_repeat_to_the_last_digit(tmp_path: Path) -> None:
    config = make_config(tasks=5)
    first = run(config, tmp_path / "a", SILENT)
    written = json.loads((tmp_path / "a" / "results.json").read_text())
    assert written == first
    matrix = written["accuracy_matrix"]
    assert len(matrix) == 5
    assert all((matrix[t][i] is None) == (i > t) for t in range(5) for i in range(5))
    assert written["average_accuracy"] == pytest.approx(sum(matrix[4]) / 5)
    assert written["trained_parameters"] == 4 * 2 * 64 + 4 * 64 + 10 * 65
    assert [sum(row) for row in written["prompt_selections"]["train"]] == [16 * 2] * 5
    assert [sum(row) for row in written["prompt_selections"]["test"]] == [8 * 2] * 5
    assert len(written["backbone"]["sha256"]) == 64
    assert written["config"]["method"]["pool_size"] == 4
    assert {"torch", "timm", "promptcl"} <= set(written["versions"])
    for record in written["tasks"]:
        assert record["train_images_per_second"] > 0
        assert record["eval_seconds"] > 0
    again = run(config, tmp_path / "b", SILENT)
    assert timeless(again) == timeless(first)
    other = run(make_config(tasks=5, seed=2), tmp_path / "c", SILENT)
    assert timeless(other)["accuracy_matrix"] != timeless(first)["accuracy_matrix"] or (
        other["prompt_selections"] != first["prompt_selections"]
    )


@pytest.mark.parametrize(
    ("method", "train"),
    [({"name": "ncm"}, {}), ({"name": "linear"}, {}), ({"name": "linear"}, {"mask": False}), ({"name": "joint"}, {})],
)
def test_baselines(tmp_path: Path, method: dict[str, Any], train: dict[str, Any]) -> None:
    results = run(make_config(method=method, train=train, data={"augment": "none"}), tmp_path, SILENT)
    assert 0 <= results["average_accuracy"] <= 100
    assert results["prompt_selections"] is None
    assert (results["forgetting"] is None) == (method["name"] == "joint")
    assert results["trained_parameters"] == (0 if method["name"] == "ncm" else 10 * 65)


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


def test_a_loss_that_explodes_is_an_error_and_leaves_no_results(tmp_path: Path) -> None:
    config = make_config(train={"lr": 1e30, "optimizer": "sgd", "clip_norm": None, "epochs": 3})
    with pytest.raises(UserError, match=r"loss became .* lower the learning rate"):
        run(config, tmp_path / "out", SILENT)
    assert not (tmp_path / "out" / "results.json").exists()


def test_steps_of_the_release() -> None:
    """5,000 images, batch 128, remainder dropped, 5 epochs: 195 steps (as in the release)."""
    config = make_config(train={"batch_size": 128, "epochs": 5, "drop_last": True})
    assert 5 * Learner(config).batches.steps_per_epoch(5000) == 195


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
