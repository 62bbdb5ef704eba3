"""Methods with changes of low rank: slca_lora, inflora, e2lora."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from helpers import make_config
from torch import Tensor

from promptcl.backbone import Backbone, Change, Weight
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.layers.lora import LoRA, matrix
from promptcl.layers.losses import reverse_cross_entropy
from promptcl.layers.pool import UpdatePool, kept_ranks, rotated
from promptcl.learner.learner import Learner
from promptcl.methods._align import nearer, normalised
from promptcl.methods.e2lora import Model as E2LoRA

FEW = {"align_epochs": 1, "align_samples": 16}


def make(backbone: Backbone, *tasks: ImageSet, **method: Any) -> Learner:
    learner = Learner(make_config(method=method), backbone)
    for images in tasks:
        learner.learn(images)
    return learner


@pytest.mark.parametrize("name", ["slca_lora", "inflora", "e2lora"])
def test_untrained_it_is_the_plain_model(name: str, backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, name=name, **({"reset_norm": False} if name == "e2lora" else {}))
    method = cast(Any, learner.method)
    if name == "slca_lora":
        made = [*method.lora.inserts(), *method.rest.inserts()]
    else:
        made = method.inserts(backbone) if name == "inflora" else method.updates.inserts(backbone, 0)
    images_BCHW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone(images_BCHW, made).pooled_BD, backbone(images_BCHW).pooled_BD)


def test_lora_starts_from_singular_vectors(backbone: Backbone) -> None:
    """Of the weights that it changes; with fewer outputs than inputs too."""
    start = LoRA(backbone, 2, ("fc1", "fc2"), torch.Generator())
    start.start_from_weights(backbone)
    for name in ("fc1", "fc2"):
        weight = getattr(backbone.vit.blocks[0].mlp, name).weight
        vectors_ri = torch.linalg.svd(weight.double(), full_matrices=False).Vh[:2].float()
        torch.testing.assert_close((start.downs[name][0] @ vectors_ri.T).abs(), torch.eye(2), rtol=0, atol=1e-4)


def test_terms_of_slca() -> None:
    tasks = torch.tensor([0, 0, 1, 1])
    wide = normalised(torch.tensor([[3.0, 4.0, 0.0, 5.0], [3.0, 4.0, 0.0, 12.0]]), tasks, 2, 0.1)
    wanted = torch.tensor([[6.0, 8.0, 0.0, 10.0], [3.5294, 4.7059, 0.0, 14.1176]])
    torch.testing.assert_close(wide, wanted, rtol=0, atol=1e-3)
    gap = normalised(torch.tensor([[3.0, 4.0, 0.0, 5.0]], requires_grad=True), torch.tensor([0, 0, 2, 2]), 4, 0.1)
    torch.testing.assert_close(gap.detach(), wanted[:1], rtol=0, atol=1e-3)  # tasks without classes do not count
    nothing = torch.zeros(1, 4, requires_grad=True)
    normalised(nothing, tasks, 2, 0.1).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()
    right = torch.log(torch.tensor([[0.7, 0.3]]))
    assert reverse_cross_entropy(right, torch.tensor([0]), None).item() == pytest.approx(2.7631, abs=1e-4)


def test_means_that_fall_with_age() -> None:
    """Ten tasks: 0.91 for the first, 1 for the newest; 1 for the only one."""

    class Means:
        mean_KD = torch.tensor([[1.0], [1.0]], dtype=torch.float64)

    for tasks, wanted in ((9, [0.91, 1.0]), (0, [1.0, 1.0])):
        of_class, labels = torch.tensor([0, tasks]), torch.tensor([0, 1])
        found = nearer(cast(Any, Means()), of_class, tasks, torch.ones(2, 1), labels, torch.Generator())
        assert found.flatten().tolist() == pytest.approx(wanted)


def test_slca_recalls_the_heads_as_trained(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Alignment moves the aligned head alone; one task is not aligned; the next task begins from the raw heads."""
    first = make(backbone, digits[0], name="slca_lora", **FEW).method.state_dict()
    assert torch.equal(first["head.weight_KD"], first["raw.weight_KD"])
    settings = [{"name": "slca_lora", **FEW, "align_epochs": epochs} for epochs in (0, 1, 1)]
    raw, once, twice = (make(backbone, *digits[:2], **one).method.state_dict() for one in settings)
    moved = {key for key in raw if not torch.equal(raw[key], once[key])}
    assert moved == {"head.weight_KD", "head.bias_K"}
    assert all(torch.equal(once[key], twice[key]) for key in once)
    assert torch.equal(once["raw.past_weight_KD"], first["raw.weight_KD"])
    assert torch.equal(torch.cat([raw["raw.past_weight_KD"], raw["raw.weight_KD"]]), raw["head.weight_KD"])


def test_slca_scales_old_heads_where_they_answer(backbone: Backbone, digits: list[ImageSet]) -> None:
    """By 1 + 0.02 an age; the alignment reads no scale, and what it draws of old classes is about as much shorter."""
    learner = make(backbone, *digits[:3], name="slca_lora", **FEW)
    method = cast(Any, learner.method)
    labels_N = learner.labels(digits[0])
    (batch,) = learner.batches.evaluation(digits[0], labels_N, 1)
    with torch.no_grad():
        features_BD = method.features(backbone, batch)
        scaled = torch.cat([features_BD * scale for scale in (1.04, 1.02, 1.0)])
        each = method.head(scaled).view(3, len(features_BD), 3, 2)
        wanted = torch.cat([each[task, :, task] for task in range(3)], 1)
        torch.testing.assert_close(method.logits(backbone, batch), wanted)
        plain = normalised(method.head(features_BD), method.task_of_class_K, 3, 0.1)
        torch.testing.assert_close(method.aligned_logits(features_BD), plain)
    ones, labels = torch.ones(600, 1), torch.arange(600) % 6
    shorter = method.aged(ones, labels, torch.Generator().manual_seed(0))[:, 0]
    assert (shorter[labels > 3] == 1).all()
    for age, old in ((1, (labels == 2) | (labels == 3)), (2, labels < 2)):
        assert shorter[old].min() >= 1 / (1 + 0.03 * age)
        assert shorter[old].max() <= 1 / (1 + 0.01 * age)
        assert shorter[old].std() > 0


def test_ranks_that_are_too_large(backbone: Backbone, digits: list[ImageSet]) -> None:
    """More than the outputs of a layer is full rank; more than the width is refused where A has orthogonal rows."""
    learner = make(backbone, *digits[:2], name="e2lora", rank=200, covariance="diagonal", **FEW)
    assert [pool.owner_LR.shape[1] for pool in cast(E2LoRA, learner.method).updates.pools] == [192, 192]
    for name in ("inflora", "slca_lora"):
        with pytest.raises(UserError, match=r"method\.rank=65 of a ViT of width 64: expected at most 64"):
            make(backbone, name=name, rank=65)


def test_the_rotation_of_an_update_of_full_rank() -> None:
    """Inputs of rank 3 of 6: three columns hold all of it, and more columns never less."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((40, 3), (3, 6), (8, 8), (8, 6))
    low, wide, up, down = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    x = low @ wide
    columns, rows, energy = rotated(up, down, torch.cov((x - x.mean(0)).T, correction=0))
    torch.testing.assert_close(columns @ rows, up @ down)
    torch.testing.assert_close(columns.T @ columns, torch.eye(8, dtype=torch.float64))
    wanted, centred = x @ (up @ down).T, x - x.mean(0)
    for rank in range(1, 9):
        found = centred @ (columns[:, :rank] @ rows[:rank]).T
        lost = (centred @ (up @ down).T - found).square().sum() / 40
        assert lost.item() == pytest.approx(energy[rank:].sum().item(), abs=1e-9)
    assert energy[3:].sum() < 1e-9 * energy[0]
    torch.testing.assert_close(x @ (columns[:, :3] @ rows[:3]).T, wanted)


def test_shares_of_energy() -> None:
    """The common share falls until all fit."""
    assert kept_ranks([torch.tensor([90.0, 9.0, 1.0])], 3) == [3]
    assert kept_ranks([torch.tensor([90.0, 9.0, 1.0])], 2) == [2]
    assert kept_ranks([torch.tensor([9.0, 1.0]), torch.tensor([6.0, 4.0])], 3) == [1, 2]
    assert kept_ranks([torch.zeros(3)], 2) == [1]


def test_columns_that_are_handed_on(backbone: Backbone) -> None:
    """A rotation changes no update; earlier columns are not touched while a new task trains."""
    frozen = torch.stack([matrix(backbone, layer, "fc1") for layer in range(backbone.depth)])
    sizes, generator = (frozen.shape[1], frozen.shape[2]), torch.Generator().manual_seed(0)
    pool = UpdatePool(backbone.depth, sizes[0], sizes[1], sizes[0], generator)
    with torch.no_grad():
        pool.up_LoR.normal_(generator=torch.Generator().manual_seed(1))
        whole = pool.trained(0, 0).clone()
        assert torch.equal(pool.kept(backbone, "fc1")[0], frozen[0])
        pool.end(0, torch.eye(sizes[1]).double().expand(backbone.depth, -1, -1))
        torch.testing.assert_close(pool.kept(backbone, "fc1")[0], frozen[0] + whole, rtol=1e-4, atol=1e-4)
        pool.begin(1)
        kept, before = pool.owner_LR[0] == 0, pool.kept(backbone, "fc1")[0]
        assert kept.sum() <= sizes[0] / 2
        assert not pool.kept_LRi[0][~kept].any()
        assert not pool.trained(0, 1).any()
        pool.down_LRi.fill_(1.0)
        assert pool.kept(backbone, "fc1")[0] is before
        torch.testing.assert_close(pool.trained(0, 1), pool.up_LoR[0][:, ~kept].sum(1, keepdim=True).expand(sizes))


def test_e2lora_trains_nothing_that_earlier_tasks_keep(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Their columns and rows, to the bit; the columns that they gave up belong to the new task."""
    learner = make(backbone, digits[0], name="e2lora", covariance="diagonal", **FEW)
    pool = cast(E2LoRA, learner.method).updates.qkv
    first = [part.detach().clone() for part in (pool.up_LoR, pool.kept_LRi)]
    learner.learn(digits[1])
    kept_LR = pool.owner_LR == 0
    assert kept_LR.any(1).all()
    assert (kept_LR.sum(1) <= kept_LR.shape[1] / 2).all()
    for old, now in zip(first, (pool.up_LoR.detach(), pool.kept_LRi), strict=True):
        by_column = (old.mT, now.mT) if old.shape[2] == kept_LR.shape[1] else (old, now)
        assert torch.equal(by_column[0][kept_LR], by_column[1][kept_LR])
    assert (pool.kept_LRi[~kept_LR].norm(dim=-1) > 0).any()


def test_e2lora_starts_a_task_as_the_model_that_guides_it(backbone: Backbone, digits: list[ImageSet]) -> None:
    """With its own rows at zero the new task gives what the guide gives: the distillation is zero."""
    learner = make(backbone, digits[0], name="e2lora", covariance="diagonal", **FEW)
    method = learner.method
    assert isinstance(method, E2LoRA)
    method.updates.begin(1)
    labels_N = learner.labels(digits[0])
    (batch,) = learner.batches.evaluation(digits[0], labels_N, 1)
    with torch.no_grad():
        torch.testing.assert_close(method.features(backbone, batch, 1), method.features(backbone, batch))


def test_other_families_of_backbones() -> None:
    """Three projections in the place of one are changed alike; an MLP that is not plain is refused in a sentence."""
    small = {"depth": 2, "embed_dim": 48, "num_heads": 2}
    eva: dict[str, Any] = {"name": "eva02_tiny_patch14_224", "image_size": 28, "kwargs": {**small, "qkv_fused": False}}
    backbone = Backbone.create(make_config(backbone=eva).backbone)
    assert backbone.vit.blocks[0].attn.qkv is None
    assert matrix(backbone, 0, "qkv").shape == (144, 48)
    assert make(backbone, name="inflora").trained_parameters() == 2 * 2 * 48 * 10
    images_BCHW = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    for name in ("slca_lora", "e2lora"):
        method = cast(Any, make(backbone, name=name).method)
        made = (
            [*method.lora.inserts(), *method.rest.inserts()]
            if name == "slca_lora"
            else method.updates.inserts(backbone, 0)
        )
        torch.testing.assert_close(backbone(images_BCHW, made).pooled_BD, backbone(images_BCHW).pooled_BD)
    eva["kwargs"] = {**small, "scale_mlp": True}
    other = Backbone.create(make_config(backbone=eva).backbone)
    for name in ("slca_lora", "e2lora"):
        with pytest.raises(UserError, match=r"changes fc1 of a plain MLP, those of eva02\w+ are SwiGLU"):
            make(other, name=name)


def added(update_oi: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: y + x @ update_oi.T


@pytest.mark.parametrize("name", ["inflora", "e2lora"])
def test_merged_weights_give_what_the_updates_add(name: str, digits: list[ImageSet]) -> None:
    """W + B A in one product, as W x and B (A x) in three: to rounding, after two tasks, in float64."""
    backbone = Backbone.create(make_config().backbone)
    learner = make(backbone, *digits[:2], name=name, **({"covariance": "diagonal", **FEW} if name == "e2lora" else {}))
    method = cast(Any, learner.method.double())
    backbone.double()
    made = method.inserts(backbone) if name == "inflora" else method.updates.inserts(backbone, None)
    assert all(isinstance(one, Weight) for one in made)
    apart = []
    for one in made:
        places = ("q", "k", "v") if one.place == "qkv" else (one.place,)
        parts = (one.weight_oi - matrix(backbone, one.layer, one.place)).chunk(len(places))
        apart += [Change(one.layer, *also) for also in zip(places, map(added, parts), strict=True)]
    images_BCHW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    merged, plain = backbone(images_BCHW, made).pooled_BD, backbone(images_BCHW).pooled_BD
    torch.testing.assert_close(merged, backbone(images_BCHW, apart).pooled_BD, rtol=0, atol=1e-5)
    assert (merged - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["inflora", "e2lora"])
def test_weights_are_merged_once(name: str, backbone: Backbone, digits: list[ImageSet]) -> None:
    """Not in each batch; anew where what they are made of was written to, or loaded."""
    learner = make(backbone, *digits[:2], name=name, **({"covariance": "diagonal", **FEW} if name == "e2lora" else {}))
    method = cast(Any, learner.method)

    def merged() -> list[Tensor]:
        made = method.inserts(backbone) if name == "inflora" else method.updates.inserts(backbone, None)
        return [one.weight_oi for one in made]

    learner.evaluate(digits[0])
    first = merged()
    learner.evaluate(digits[1])
    assert all(one is other for one, other in zip(first, merged(), strict=True))
    before = [one.clone() for one in first]
    method.load_state_dict({key: 2 * value for key, value in method.state_dict().items()})
    assert not any(torch.equal(one, other) for one, other in zip(before, merged(), strict=True))
