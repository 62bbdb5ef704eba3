"""Acceptance tests of APT, on a small timm ViT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from helpers import make_config
from plain_method import PlainTask, begin_task, make_method, plain_batch, shake
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.learner import Learner
from promptcl.methods._base import TaskView
from promptcl.methods.apt import Model
from promptcl.training import Silent


def test_number_of_parameters_at_the_width_of_vit_b() -> None:
    model = make_method(Model, SimpleNamespace(width=768, depth=12, reads_class_token=True), classes=0)
    assert model.vectors_L2D.numel() == 18_432
    model.grow(cast(TaskView, PlainTask(1, 100)))
    trained = sum(p.numel() for group in model.parameter_groups(0.1) for p in group["params"])
    assert trained == 18_432 + 768 * 100
    assert sum(value.numel() for value in model.state_dict().values()) == trained + 18_432  # the average


def test_vectors_of_zeros_are_the_plain_vit(backbone: Backbone) -> None:
    model, batch = make_method(Model, backbone), plain_batch(backbone)
    found = model.features(backbone, batch, torch.zeros_like(model.vectors_L2D))
    assert torch.equal(found, F.layer_norm(batch.query_BD, (backbone.width,)))


@pytest.mark.parametrize("part", [0, 1])
def test_a_vector_is_added_to_the_class_token_alone(backbone: Backbone, part: int) -> None:
    """In the first block, by hand: what its attention gives is what timm's gives with the vector added."""
    model, batch, seen = make_method(Model, backbone), plain_batch(backbone), list[Tensor]()
    vectors = torch.zeros_like(model.vectors_L2D)
    vectors[0, part] = torch.randn(backbone.width, generator=torch.Generator().manual_seed(0))
    block, attn = backbone.vit.blocks[0], backbone.vit.blocks[0].attn
    places = (block.norm1, attn.proj)
    hooks = [at.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach())) for at in places]
    model.features(backbone, batch, vectors)
    for hook in hooks:
        hook.remove()
    x, got = seen
    q, k, v = attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    (k, v)[part][:, 0] += vectors[0, part]
    q, k, v = (t.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_logits_ignore_the_length_of_a_class_row(backbone: Backbone) -> None:
    model, batch = make_method(Model, backbone), plain_batch(backbone)
    before = model.logits(backbone, batch)
    with torch.no_grad():
        model.head.weight_KD.mul_(torch.arange(1.0, 7.0)[:, None])
    torch.testing.assert_close(model.logits(backbone, batch), before, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_vectors_and_the_head_rows_of_the_task(backbone: Backbone) -> None:
    model = make_method(Model, backbone, classes=2)
    begin_task(model, 1, 2)
    shake(model)
    model.loss(backbone, plain_batch(backbone, 6, 4).allowing(2, 3, of=4).rows([2, 3])).backward()
    vectors, head = model.vectors_L2D.grad, model.head.weight_KD.grad
    assert vectors is not None
    assert head is not None
    assert vectors[:, 1].abs().sum(1).all()
    assert head.abs().sum(1).bool().tolist() == [False, False, True, True]
    assert all(p.grad is None for p in backbone.parameters())


def test_answers_take_the_average_and_training_goes_on_from_the_present(
    backbone: Backbone, digits: list[ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Backbone, images_BCHW: Tensor, feature: str = "class") -> Tensor:
        raise AssertionError("a query was computed")

    monkeypatch.setattr(Backbone, "query", refuse)
    learner, begun = Learner(make_config(method={"name": "apt", "average": 0.6}), backbone), list[Tensor]()
    model = cast(Model, learner.method)

    class Watch(Silent):
        def stage(self, number: int, steps: int) -> None:
            begun.append(model.vectors_L2D.detach().clone())

    learner.learn(digits[0])
    first = model.vectors_L2D.detach().clone()
    assert torch.equal(model.average_L2D, first)
    learner.learn(digits[1], progress=Watch())
    assert torch.equal(begun[0], first)
    torch.testing.assert_close(model.average_L2D, 0.6 * first + 0.4 * model.vectors_L2D.detach(), atol=1e-7, rtol=0)
    before = learner.logits(digits[0], learner.labels(digits[0]))
    with torch.no_grad():
        model.vectors_L2D.zero_()
    assert torch.equal(learner.logits(digits[0], learner.labels(digits[0])), before)


def test_a_vit_without_class_token_is_refused() -> None:
    without = SimpleNamespace(width=8, depth=12, name="vit_of_patches", reads_class_token=False)
    with pytest.raises(UserError, match="works on the class token, which vit_of_patches does not read"):
        make_method(Model, without)
