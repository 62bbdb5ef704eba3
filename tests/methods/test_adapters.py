"""Methods with adapters of the first task or of each: ease, tuna, fsa."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from helpers import make_config
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.learner.learner import Learner
from promptcl.methods.ease import guess
from promptcl.methods.tuna import surest, universal

FEW = {"align_epochs": 1, "align_samples": 16, "size": 3}


def make(backbone: Backbone | None, *tasks: ImageSet, **method: Any) -> Learner:
    learner = Learner(make_config(method=method, eval={"batch_size": 1}), backbone)
    for images in tasks:
        learner.learn(images)
    return learner


def state(learner: Learner, *starts: str) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.method.state_dict().items() if name.startswith(starts)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_prototypes_that_are_guessed() -> None:
    """EASE's: softmax of cosines 1 and 0, without a temperature."""
    found = guess(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.4621, 1.0758]]), rtol=0, atol=1e-4)


def test_ease_never_changes_what_was_seen(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Prototypes of a class in its own space and adapters stay; a class has one in each newer space too."""
    learner = make(backbone, digits[0], name="ease", size=3)
    labels_N = learner.labels(digits[0])
    first = state(learner, "prototypes_SKD", "adapters.0.")
    method = cast(Any, learner.method)
    batches = learner.batches.evaluation(digits[0], labels_N, 1)
    feature_ND = torch.cat([method.feature(backbone, batch, 0).detach() for batch in batches])
    means_KD = torch.stack([feature_ND[labels_N == label].mean(0) for label in range(2)])
    cosine_NK = torch.nn.functional.cosine_similarity(feature_ND[:, None], means_KD[None], dim=2)
    torch.testing.assert_close(learner.logits(digits[0], labels_N), cosine_NK, rtol=0, atol=1e-5)
    for images in digits[1:3]:
        learner.learn(images)
    now = state(learner, "prototypes_SKD", "adapters.0.")
    assert torch.equal(now["prototypes_SKD"][0, :2], first.pop("prototypes_SKD")[0])
    assert same(first, now)
    assert (now["prototypes_SKD"].norm(dim=2)[1:] > 0).all()


def test_ease_adds_a_tenth_of_the_mean_cosine_of_other_spaces(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, *digits[:3], name="ease", size=3)
    method, labels_N = cast(Any, learner.method), learner.labels(digits[1])
    batch = next(iter(learner.batches.evaluation(digits[1], labels_N, 1)))
    with torch.no_grad():
        cosines = [
            torch.nn.functional.cosine_similarity(method.feature(backbone, batch, space), prototypes, dim=1)
            for space, prototypes in enumerate(method.prototypes_SKD)
        ]
        found = method.logits(backbone, batch)[0]
    for label in range(6):
        own, others = label // 2, [space for space in range(3) if space != label // 2]
        wanted = cosines[own][label] + 0.1 / 2 * sum(cosines[space][label] for space in others)
        assert found[label].item() == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize("name", ["ease", "tuna", "fsa", "aper"])
def test_untrained_it_is_the_plain_model(name: str, backbone: Backbone) -> None:
    """Bit for bit, in all rows and in those that are read, with and without a gradient."""
    method = cast(Any, make(backbone, name=name, size=3).method)
    made = method._anew(torch.Generator()) if hasattr(method, "_anew") else method.adapted
    images_BCHW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone(images_BCHW, made.inserts()).pooled_BD, backbone(images_BCHW).pooled_BD)
    assert torch.equal(backbone.tokens(images_BCHW, made.inserts()), backbone.tokens(images_BCHW))


@pytest.mark.parametrize("name", ["ease", "tuna"])
def test_adapters_answer_in_any_order(name: str, backbone: Backbone, digits: list[ImageSet]) -> None:
    """The features of a task's adapters depend on no other adapters that an image goes through before."""
    learner = make(backbone, *digits[:3], **({"name": name, "size": 3} | ({} if name == "ease" else FEW)))
    method, labels_N = cast(Any, learner.method), learner.labels(digits[0])
    batch = next(iter(learner.batches.evaluation(digits[0], labels_N, 1)))
    with torch.no_grad():
        before = method.logits(backbone, batch)
        learner.batches.queries.clear()
        for number in (2, 1, 0):
            method.feature(backbone, batch, number)
        assert torch.equal(method.logits(backbone, batch), before)


def test_tuna_merges_by_sign_and_chooses_by_entropy() -> None:
    merged = universal(torch.tensor([[1.0, -2.0, 3.0], [-0.5, -1.0, -4.0]]))
    assert merged.tolist() == [1, -2, -4]
    one = torch.tensor([[0.3, -0.7, 0.0]])
    assert torch.equal(universal(one), one[0])
    sure = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.6, 0.4], [0.0, 1.0]]])
    assert torch.equal(surest(sure), torch.tensor([[0.9, 0.1], [0.0, 1.0]]))  # each image by itself


@pytest.mark.slow
def test_alignment_moves_the_head_alone(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Of tuna and of fsa, and to the same bits each time."""
    for name, own in (("tuna", ("head.",)), ("fsa", ("aligned.",))):
        raw = state(make(backbone, *digits[:2], **{**FEW, "align_epochs": 0}, name=name), "")
        once, twice = (state(make(backbone, *digits[:2], **FEW, name=name), "") for _ in range(2))
        moved = {key for key in raw if not torch.equal(raw[key], once[key])}
        assert moved
        assert all(key.startswith(own) for key in moved)
        assert same(once, twice)


def test_fsa_is_frozen_after_the_first_task(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Its adapters to the bit; its sums are the same in any order of later tasks; its answers each time."""
    first = state(make(backbone, digits[0], **FEW, name="fsa"), "adapted.")
    one, other = (make(backbone, *(digits[i] for i in order), **FEW, name="fsa") for order in ((0, 1, 2), (0, 2, 1)))
    assert same(first, state(one, "adapted."))
    rows = [other.classes.index(name) for name in one.classes]
    for key in ("alignment.gaussians.sum_KD.value", "alignment.gaussians.squares.value"):
        torch.testing.assert_close(other.method.state_dict()[key][rows], one.method.state_dict()[key])
    labels_N = one.labels(digits[0])
    assert torch.equal(one.logits(digits[0], labels_N), one.logits(digits[0], labels_N))


def test_fsa_without_means_rules_no_class_out(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Where the aligned head is so sure that other probabilities are rounded to 0."""
    learner = make(backbone, *digits[:2], **{**FEW, "align_epochs": 0}, name="fsa", means=False)
    with torch.no_grad():
        cast(Any, learner.method).aligned.weight_KD.normal_(0, 1e3, generator=torch.Generator().manual_seed(0))
    logits_NK = learner.logits(digits[0], learner.labels(digits[0]))
    assert logits_NK.softmax(1).min() == 0
    assert logits_NK.isfinite().all()


def test_fsa_weighs_the_means_more_with_each_task(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, *digits[:2], **{**FEW, "align_epochs": 0}, name="fsa")
    labels_N = learner.labels(digits[0])
    batches = learner.batches.evaluation(digits[0], labels_N, 1)
    cosine_NK = torch.cat([cast(Any, learner.method).means(batch.query_BD) for batch in batches])
    wanted = ((torch.full_like(cosine_NK, 0.25) + (2 * cosine_NK).softmax(1)) / 2).log()  # a head of zeros
    torch.testing.assert_close(learner.logits(digits[0], labels_N), wanted)
