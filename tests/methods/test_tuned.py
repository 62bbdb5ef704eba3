"""A trainable ViT as part of a method: what is trained, saved, exported, and what stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers import make_config
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.learner.export import export
from promptcl.learner.learner import Learner
from promptcl.methods._base import TaskView
from promptcl.training import PastTask

SLOW: dict[str, Any] = {"optimizer": "sgd", "lr": 0.05, "clip_norm": None, "mask": False}


def make(vit: Backbone | None, /, *tasks: ImageSet, train: dict[str, Any] | None = None, **method: Any) -> Learner:
    settings: dict[str, Any] = {key: method.pop(key) for key in ("memory", "backbone", "data") if key in method}
    learner = Learner(make_config(method=method, train={**SLOW, **(train or {})}, **settings), vit)
    for images in tasks:
        learner.learn(images)
    return learner


def state(learner: Learner, start: str = "") -> dict[str, Tensor]:
    return {k.removeprefix(start): v.clone() for k, v in learner.method.state_dict().items() if k.startswith(start)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [*((name, 85_875_556) for name in ("finetune", "er", "derpp", "lwf", "ewc", "bic")), ("co2l", 86_487_680)],
)
def test_numbers_that_are_trained_at_vit_b_with_100_classes(name: str, count: int) -> None:
    learner = make(None, name=name, backbone={"name": "vit_base_patch16_224", "image_size": 224})
    learner.method.grow(cast(TaskView, PastTask(0, 0, 100, 0)))
    assert learner.trained_parameters() == count


def test_a_frozen_vit_is_a_linear_head_bit_for_bit(backbone: Backbone, digits: list[ImageSet]) -> None:
    tuned, linear = (make(backbone, *digits[:2], name="finetune", share=0), make(backbone, *digits[:2], name="linear"))
    assert same(state(tuned, "head."), state(linear, "head."))
    assert not state(tuned, "vit.")
    assert tuned.trained_parameters() == linear.trained_parameters()


def test_all_of_the_vit_moves_and_the_frozen_one_does_not(backbone: Backbone, digits: list[ImageSet]) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    learner = make(backbone, *digits[:2], name="finetune", share=1)
    assert same(before, dict(backbone.state_dict()))
    now = state(learner, "vit.")
    assert now.keys() == before.keys()
    moved = {name for name, value in now.items() if not torch.equal(value, before[name])}
    assert {"vit.cls_token", "vit.pos_embed", "vit.patch_embed.proj.weight", "vit.norm.weight"} < moved
    assert all(p.grad is None for p in backbone.parameters())


def test_the_last_block_alone(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """Only what is trained is saved; the rest is that of the backbone, also after it was loaded."""
    before = dict(backbone.named_parameters())
    learner = make(backbone, *digits[:2], name="finetune", share=1, blocks=1)
    last = f"vit.blocks.{backbone.depth - 1}."
    names = set(state(learner, "vit."))
    assert names
    assert all(name.startswith((last, "vit.norm.", "vit.fc_norm.")) for name in names)
    buffers = dict(cast(Any, learner.method).vit.named_buffers())
    assert all(torch.equal(buffers[name], p) for name, p in before.items() if name not in names)
    learner.save(tmp_path)
    again = Learner.load(tmp_path, backbone=backbone)
    assert torch.equal(*(one.logits(digits[0], one.labels(digits[0])) for one in (learner, again)))
    with pytest.raises(UserError, match=r"method\.blocks=99 of a ViT of \d+: expected at most so many"):
        make(backbone, name="finetune", blocks=99)


def test_two_learning_rates(backbone: Backbone) -> None:
    groups = make(backbone, name="finetune", share=0.01).method.parameter_groups(0.1)
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.001])


def test_activation_checkpointing_gives_the_same_bits(digits: list[ImageSet]) -> None:
    plain, again = (
        make(None, digits[0], name="finetune", share=1, backbone={"activation_checkpointing": on})
        for on in (False, True)
    )
    assert same(state(plain), state(again))


def test_bfloat16_computes_and_float32_remembers(digits: list[ImageSet]) -> None:
    learner = make(None, digits[0], name="finetune", share=1, backbone={"precision": "bf16"})
    assert {value.dtype for value in state(learner).values()} == {torch.float32}
    assert {p.grad.dtype for p in learner.method.parameters() if p.grad is not None} == {torch.float32}
    few = make(None, digits[0], train={"lr": 0.003}, name="finetune", share=1, backbone={"precision": "bf16"})
    moved = (state(few)["vit.vit.norm.weight"] - 1).abs().max().item()
    assert 0 < moved < 0.0039  # a step that bfloat16 could not tell from none


@pytest.mark.slow
def test_a_program_carries_one_vit(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = make(backbone, digits[0], name="finetune")
    export(learner, tmp_path / "program.pt2")
    parts = {name.split(".")[0] for name in torch.export.load(tmp_path / "program.pt2").state_dict}
    assert parts == {"method"}
