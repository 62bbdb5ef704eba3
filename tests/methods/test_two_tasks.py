"""What a task leaves of earlier ones, in methods whose own tests learn one or two: frozen parts to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import make_config
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.learner.learner import Learner

HEAD = {"head.weight_KD", "head.bias_K"}


def state(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.method.state_dict().items()}


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ({"name": "vq"}, {"optimizer": "adamw"}),
        ({"name": "l2p_prefix", "pool_size": 4, "top_k": 2}, {}),
        ({"name": "osprompt", "components": 3}, {}),
        ({"name": "apt"}, {"optimizer": "sgd", "lr": 0.1}),
        ({"name": "hide", "layers": [0, 1], "length": 2, "align_epochs": 0}, {}),
    ],
    ids=lambda value: str(value.get("name", "")),
)
def test_a_task_leaves_old_head_rows_and_past_parts(
    method: dict[str, Any], train: dict[str, Any], backbone: Backbone, digits: list[ImageSet]
) -> None:
    """With the optimisers of their recipes, and with momentum."""
    learner = Learner(make_config(method=method, train={"epochs": 2, **train}), backbone)
    vit = {name: value.clone() for name, value in backbone.state_dict().items()}
    states = []
    for images in digits[:3]:
        learner.learn(images)
        states.append(state(learner))
    _, second, third = states
    for name in HEAD & third.keys():
        assert torch.equal(third[name][:4], second[name]), name
        assert third[name][4:].any()
    past = {name for name in third if "past" in name}
    for name in past:  # slots [S, ...]; components [R, M, ...]
        kept = third[name][:1] if "slots" in name else third[name][:, :3]
        assert kept.numel()
        assert torch.equal(kept, second[name]), name
    assert bool(past) == (method["name"] in ("osprompt", "hide"))
    trained = {"vq": "prompts_RMX", "l2p_prefix": "pools.0.prompts_MLD", "apt": "vectors_L2D"}.get(method["name"])
    assert trained is None or not torch.equal(third[trained], second[trained])
    assert all(torch.equal(value, vit[name]) for name, value in backbone.state_dict().items())


WITHOUT_A_HEAD: dict[str, dict[str, Any]] = {
    "slca_lora": {"align_epochs": 1, "align_samples": 16},
    "slca": {"align_epochs": 1, "align_samples": 16},
    "tuna": {"align_epochs": 1, "align_samples": 16, "size": 3},
    "e2lora": {"align_epochs": 1, "align_samples": 16, "covariance": "diagonal"},
    "inflora": {},
}


@pytest.mark.parametrize("name", WITHOUT_A_HEAD)
def test_a_task_of_known_classes_is_said_to_have_no_head_to_train(
    name: str, backbone: Backbone, digits: list[ImageSet]
) -> None:
    learner = Learner(make_config(method={"name": name, **WITHOUT_A_HEAD[name]}), backbone)
    said = [learner.learn(images).warnings for images in (digits[0], digits[1], digits[0])]
    about = [[one for one in warnings if "has no new class, so " in one] for warnings in said]
    assert about[:2] == [[], []]
    assert about[2][0].startswith("task 3 has no new class, so ")
    assert about[2][0].endswith("`sprompts` is made for domains of known classes")


def test_many_tasks_with_prompts_of_their_own_are_worth_a_word(
    backbone: Backbone, digits: list[ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptcl.learner.story.MANY", 2)
    for name, wanted in (("dualprompt", [False, False, True]), ("ncm", [False] * 3)):
        learner = Learner(make_config(method={"name": name}), backbone)
        said = [learner.learn(images).warnings for images in digits[:3]]
        assert [any("each has prompts of its own" in one for one in warnings) for warnings in said] == wanted
