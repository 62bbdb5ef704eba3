"""finetune, er, gdumb, derpp, lwf, ewc, bic, co2l, slca: what each adds to a ViT that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_tuned import make, same, state

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.methods._base import Stage
from promptcl.methods.derpp import squares
from promptcl.training import Trainer

MEMORY = {"per_class": 4}


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[bytes], set[bytes]]]:
    """The images, new and replayed, of each stage that is trained."""

    def digests(images: ImageSet | None) -> set[bytes]:
        return set() if images is None else {images.digest(i) for i in range(len(images))}

    def watched(trainer: Trainer, stage: Stage, number: int) -> None:
        found.append((digests(stage.images), digests(stage.replay)))
        run(trainer, stage, number)

    run, found = Trainer.run, list[tuple[set[bytes], set[bytes]]]()
    monkeypatch.setattr(Trainer, "run", watched)
    return found


@pytest.mark.parametrize("name", ["er", "derpp", "lwf", "ewc", "bic"])
def test_the_first_task_is_that_of_finetune(name: str, backbone: Backbone, digits: list[ImageSet]) -> None:
    if name == "bic":  # two of eight images a class are set aside
        learner, plain = (make(backbone, name=one, memory={"per_class": 8}) for one in ("bic", "finetune"))
        learner.learn(digits[0])
        aside = learner.memory.kept["aside"][:, 0].bool()
        assert aside.sum() == 2
        plain.learn(digits[0].select(_others(digits[0], learner, aside)))
    else:
        learner, plain = (make(backbone, digits[0], name=one, memory=MEMORY) for one in (name, "finetune"))
    for part in ("vit.", "head."):
        assert same(state(learner, part), state(plain, part))


def _others(images: ImageSet, learner: Learner, aside: torch.Tensor) -> list[int]:
    stored = learner.memory.images
    assert stored is not None
    gone = {stored.digest(i) for i in np.flatnonzero(aside.numpy()).tolist()}
    return [i for i in range(len(images)) if images.digest(i) not in gone]


def test_er_masks_nothing_unless_it_is_er_ace(backbone: Backbone, digits: list[ImageSet]) -> None:
    one, other, ace = (
        state(make(backbone, *digits[:2], name="er", memory=MEMORY, train={"mask": mask}, asymmetric=asymmetric))
        for mask, asymmetric in ((False, False), (True, False), (True, True))
    )
    assert not same(other, ace)
    assert one.keys() == ace.keys()
    with pytest.raises(UserError, match=r"method\.asymmetric=true masks new images, which train\.mask=false"):
        make(backbone, digits[0], name="er", asymmetric=True)


def test_gdumb_starts_from_the_checkpoint_on_the_memory_alone(
    backbone: Backbone, digits: list[ImageSet], stages: list[tuple[set[bytes], set[bytes]]]
) -> None:
    learner = make(backbone, *digits[:2], name="gdumb", share=1, memory=MEMORY)
    assert [(len(images), len(replayed)) for images, replayed in stages] == [(8, 0), (16, 0)]
    assert stages[0][0] < stages[1][0]
    assert learner.memory.images is not None
    assert stages[1][0] == {learner.memory.images.digest(i) for i in range(16)}
    first = dict(backbone.state_dict())
    assert not same(state(learner, "vit."), first)
    with torch.no_grad():
        next(iter(learner.method.learn(backbone, learner.begin(digits[2]))))
    assert same(state(learner, "vit."), first)
    assert not any(value.any() for value in state(learner, "head.").values())
    with pytest.raises(UserError, match="learns from its memory alone"):
        make(backbone, digits[0], name="gdumb")


def test_squares_of_stored_logits() -> None:
    logits_BK = torch.tensor([[9.0, 9, 9], [1, 2, 3], [1, 2, 3]])
    stored_RS = torch.tensor([[0.0, 0, 0], [0, 0, torch.nan]])
    assert squares(logits_BK, stored_RS).tolist() == pytest.approx([14 / 3, 5 / 3])
    logits_BK.requires_grad_()
    squares(logits_BK, stored_RS).sum().backward()
    assert logits_BK.grad is not None
    assert logits_BK.grad[2].tolist() == pytest.approx([2 / 3, 4 / 3, 0])  # an output that did not exist
    assert squares(logits_BK, stored_RS[:, :2]).tolist() == pytest.approx([5 / 3, 5 / 3])


def test_derpp_without_weights_is_finetune_and_with_beta_alone_er(backbone: Backbone, digits: list[ImageSet]) -> None:
    free, plain, beta, er = (
        state(make(backbone, *digits[:2], memory=MEMORY, **method))
        for method in (
            {"name": "derpp", "alpha": 0, "beta": 0},
            {"name": "finetune"},
            {"name": "derpp", "alpha": 0, "beta": 1},
            {"name": "er"},
        )
    )
    for name in plain:  # both halves are as large, so er has half of their sum: its steps are half as long
        torch.testing.assert_close(free[name], plain[name], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(beta["head.weight_KD"], plain["head.weight_KD"], atol=1e-4)
    half = state(make(backbone, *digits[:2], name="er", memory=MEMORY, train={"lr": 0.05}))
    assert same(half, er)


def test_derpp_keeps_the_logits_of_the_first_pass(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """With steps of next to nothing they are those of the start; they travel with their images."""
    still = {"lr": 1e-12, "epochs": 2}
    method: dict[str, Any] = {"name": "derpp", "head_init": "uniform", "memory": {**MEMORY, "store": True}}
    learner = make(backbone, digits[0], train=still, **method)
    assert learner.memory.images is not None
    before = learner.memory.kept["logits"].clone()
    digests = list(learner.memory._digests)
    now = learner._keep(learner.memory.images)["logits"]
    assert before.shape == now.shape == (8, 2)
    assert not torch.equal(before, now)  # those of an augmented view
    assert (before - now).abs().max() < 2
    learner.learn(digits[1])
    kept = learner.memory.kept["logits"]
    assert kept.shape == (16, 4)
    old = [learner.memory._digests.index(digest) for digest in digests]
    assert torch.equal(kept[old, :2], before)
    assert kept[old, 2:].isnan().all()
    assert kept.isnan().sum() == 16
    learner.save(tmp_path)
    again = Learner.load(tmp_path, backbone=backbone)
    assert torch.equal(again.memory.kept["logits"].nan_to_num(), kept.nan_to_num())
    end = make(backbone, digits[0], train=still, **method, logits="end").memory.kept["logits"]
    torch.testing.assert_close(end, now, rtol=0, atol=1e-4)


def test_lwf_holds_the_old_outputs(backbone: Backbone, digits: list[ImageSet]) -> None:
    """The old outputs on new images move less where they are held; warming up moves new rows of the head alone."""
    moved = []
    for alpha in (0, 1):
        learner = make(backbone, digits[0], name="lwf", share=1, alpha=alpha, train={"lr": 0.005, "epochs": 4})
        before = learner.logits(digits[1], torch.zeros(len(digits[1]), dtype=torch.long))
        learner.learn(digits[1])
        after = learner.logits(digits[1], learner.labels(digits[1]))[:, :2]
        moved.append((after.softmax(1) - before.softmax(1)).abs().mean().item())
    assert moved[1] < moved[0] / 2
    learner = make(backbone, digits[0], name="lwf", warmup=2)
    before_state, task = state(learner), learner.begin(digits[1])
    with torch.no_grad():
        learner.trainer(task).run(next(iter(learner.method.learn(backbone, task))), 0)
    assert same(state(learner, "vit."), {k[4:]: v for k, v in before_state.items() if k.startswith("vit.")})
    head = cast(Any, learner.method).head.weight_KD
    assert torch.equal(head[:2], before_state["head.weight_KD"])
    assert head[2:].any()


def test_ewc_without_stiffness_is_finetune_and_with_it_moves_less(backbone: Backbone, digits: list[ImageSet]) -> None:
    def after(weight: float) -> tuple[dict[str, torch.Tensor], float]:
        learner = make(backbone, digits[0], name="ewc", share=1, weight=weight, train={"lr": 0.02})
        springs = cast(Any, learner.method).springs
        if not weight:
            for value in springs.stiffness.values:
                value.zero_()
        stiff = [value.clone() for value in springs.stiffness.values]
        learner.learn(digits[1])
        own = cast(Any, learner.method).trained
        with torch.no_grad():
            parts = zip(stiff, springs.rest, own, strict=True)
            return state(learner), sum(
                (s * (p[: len(s)] - r[: len(s)]).square()).sum().item() for s, r, p in parts if p.ndim
            )

    plain = state(make(backbone, *digits[:2], name="finetune", share=1, train={"lr": 0.02}))
    free, _ = after(0)
    assert all(torch.equal(free[name], value) for name, value in plain.items())
    loose, firm = after(0.01)[1], after(30)[1]
    assert firm < loose / 2


@pytest.mark.parametrize("anchor", ["separate", "online", "moving"])
def test_springs_of_each_form(anchor: str, backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    every: dict[str, Any] = {"every": 1} if anchor == "moving" else {}
    learner = make(backbone, *digits[:2], name="ewc", anchor=anchor, weight=1, fisher_images=6, **every)
    springs = cast(Any, learner.method).springs
    stiff, rest = springs.stiffness.values[0], springs.rest[0]
    assert stiff[:2].min() >= 0
    assert stiff[:2].any()
    assert bool(stiff[2:].any()) == (anchor != "moving")  # its average becomes a spring with the next task
    trained = cast(Any, learner.method).trained[0]
    assert not torch.equal(rest[:2], trained[:2])
    learner.save(tmp_path)
    again = Learner.load(tmp_path, backbone=backbone)
    for one in (learner, again):
        one.learn(digits[2])
    assert same(state(learner), state(again))


def test_bic_sets_images_aside_and_corrects_the_newest_logits(
    backbone: Backbone, digits: list[ImageSet], stages: list[tuple[set[bytes], set[bytes]]]
) -> None:
    learner = make(backbone, *digits[:3], name="bic", memory={"per_class": 8}, bias_steps=20, validation=0.25)
    memory, method = learner.memory, cast(Any, learner.method)
    assert memory.images is not None
    aside = memory.kept["aside"][:, 0]
    counts = torch.zeros(6).index_add(0, learner.labels(memory.images), aside)
    assert counts.tolist() == [2] * 6  # of each class, in every task
    held = {memory.images.digest(i) for i in range(len(memory)) if aside[i]}
    trained = set().union(*(new | replayed for new, replayed in stages))
    assert held
    assert not held & trained
    assert [len(replayed) for new, replayed in stages if new] == [0, 12, 24]
    assert sum(not new for new, _ in stages) == 2  # the first task corrects nothing
    assert method.alpha.item() != 1
    raw_BK = torch.ones(1, 6)
    found = method.corrected(raw_BK)[0]
    assert found[:4].tolist() == [1] * 4
    assert torch.equal(found[4:], (method.alpha + method.beta).expand(2))
    with torch.no_grad():
        before = state(learner, "vit.")
        method.alpha.fill_(1)
        method.beta.fill_(2)
        plain = method.bias_loss(raw_BK, torch.tensor([0]))
        method.options = method.options.model_copy(update={"bias_decay": 0.0})
        assert (plain - method.bias_loss(raw_BK, torch.tensor([0]))).item() == pytest.approx(0.2)
        method.beta.fill_(0)
        assert torch.equal(method.corrected(raw_BK), raw_BK)
    assert same(before, state(learner, "vit."))


def test_bic_replays_what_was_held_out_before(
    backbone: Backbone, digits: list[ImageSet], stages: list[tuple[set[bytes], set[bytes]]]
) -> None:
    settings: dict[str, Any] = {"memory": {"per_class": 8}, "train": {"holdout": 0.5}, "validation": 0.25}
    learner = make(backbone, digits[0], name="bic", **settings)
    images = learner.memory.images
    assert images is not None
    late = {images.digest(int(i)) for i in learner.memory.kept["aside"][:, 0].isnan().nonzero()}
    assert late
    learner.learn(digits[1])
    assert late <= stages[-2][1]


def test_bic_weighs_by_classes(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner, shares = make(backbone, name="bic", memory={"per_class": 2}), []
    for images in digits[:4]:
        learner.learn(images)
        shares.append(cast(Any, learner.method).old_share())
    learner.learn(digits[0])  # known classes again: tasks are counted
    assert [*shares[1:], cast(Any, learner.method).old_share()] == pytest.approx([1 / 2, 2 / 3, 3 / 4, 4 / 5])
    with pytest.raises(UserError, match=r"method\.name=bic needs images of earlier tasks"):
        make(backbone, digits[0], name="bic")


def test_co2l_learns_by_contrast_and_then_a_head(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, *digits[:2], name="co2l", share=0.1, memory=MEMORY, head_epochs=3, train={"lr": 0.02})
    method, vit = cast(Any, learner.method), state(learner, "vit.")
    assert not same(vit, dict(backbone.state_dict()))
    assert method.embedded(torch.zeros(2, 3, 32, 32)).norm(dim=1).tolist() == pytest.approx([1, 1])
    method.new_head(torch.Generator())
    assert not state(learner, "head.")["weight_KD"].any()
    alone = make(backbone, *digits[:2], name="co2l", share=0.1, memory=MEMORY, head_epochs=3, relations=0.0)
    assert not same(vit, state(alone, "vit."))


def test_slca_goes_on_from_the_heads_as_trained(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, digits[0], name="slca", align_epochs=1, align_samples=16)
    method = cast(Any, learner.method)
    first = method.raw.rows()[0].clone()
    assert torch.equal(method.head.weight_KD, first)  # nothing is aligned after one task
    learner.learn(digits[1])
    assert torch.equal(method.raw.rows()[0][:2], first)
    assert not torch.equal(method.head.weight_KD[:2], first)
