"""er, gdumb, derpp, bic, co2l, lwf, ewc: what is drawn, what is trained, and that each term is what its paper says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_tuned import make, same, state
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.methods.gdumb import cut_and_mix
from promptcl.recipes.load import load_config
from promptcl.training.batches import TrainBatch
from promptcl.training.loop import Run

MEMORY = {"per_class": 8}
PLAIN: dict[str, Any] = {"train": {"batch_size": 64}, "data": {"augment": "none"}}
"""Every batch is all there is, as it is: no order and no view matters."""


def first_stage(learner: Learner, images: ImageSet) -> tuple[Run, Callable[[int], TrainBatch]]:
    """The first stage of a task before its first step, and what makes the batch of a step."""
    task = learner.begin(images)
    trainer = learner.trainer(task)
    with torch.no_grad():
        run = trainer.prepare(next(iter(learner.method.learn(learner.backbone, task))), 0)
    assert run.stage.images is not None
    order = torch.arange(len(run.stage.images))
    return run, lambda step: trainer.batch(run, step, order)[0]


def test_er_draws_each_remembered_image_equally_often(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, *digits[:2], name="er", memory=MEMORY)
    run, batch = first_stage(learner, digits[2])
    assert run.replay is not None
    assert len(run.replay.images) == 32  # all images of both tasks
    drawn: Counter[int] = Counter()
    for step in range(300):
        rows = batch(step).old_index
        assert len(set(rows)) == 8  # none twice in one batch
        drawn.update(rows)
    wanted = 300 * 8 / 32
    spread = sum((drawn[row] - wanted) ** 2 for row in range(32)) / (wanted * (1 - 8 / 32))
    assert spread < 61.1  # chi-square of 31 degrees of freedom: 99.9 %


def test_er_is_one_mean_over_new_and_replayed_images(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, digits[0], name="er", memory=MEMORY)
    batch = first_stage(learner, digits[1])[1](0)
    assert batch.old_B.tolist() == [False] * 8 + [True] * 8
    logits_BK = learner.method.logits(backbone, batch)
    each_B = F.cross_entropy(logits_BK, batch.labels_B, reduction="none")
    assert learner.method.loss(backbone, batch).item() == pytest.approx(each_B.sum().item() / 16, rel=1e-5)


def test_gdumb_does_not_depend_on_the_order_of_tasks(backbone: Backbone, digits: list[ImageSet]) -> None:
    """All images are remembered, so that both orders end with the same memory."""
    settings: dict[str, Any] = {"name": "gdumb", "share": 0.1, "memory": MEMORY, **PLAIN}
    settings["train"] = {**PLAIN["train"], "epochs": 6}
    one, other = (make(backbone, *(digits[i] for i in order), **settings) for order in ((0, 1, 2), (2, 0, 1)))
    assert one.classes != other.classes
    test = digits[0] + digits[1] + digits[2]
    answers = [
        learner.logits(test, learner.labels(test))[:, [learner.classes.index(name) for name in sorted(one.classes)]]
        for learner in (one, other)
    ]
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)
    assert answers[0].std() > 0.05
    last = make(backbone, digits[0], **settings)
    last.learn(digits[1])  # fewer tasks, another answer
    assert not torch.allclose(
        last.logits(digits[0], last.labels(digits[0])), answers[0][: len(digits[0]), :4], atol=0.05
    )


def test_cutmix_by_its_definition() -> None:
    images_BCHW = torch.arange(6.0)[:, None, None, None].expand(-1, 1, 80, 120)
    shares = []
    for seed in range(400):
        mixed_BCHW, other_B, share = cut_and_mix(images_BCHW, torch.Generator().manual_seed(seed))
        assert sorted(other_B.tolist()) == list(range(6))
        shares.append(share)
        for i, j in enumerate(other_B.tolist()):
            own = (mixed_BCHW[i] == i).float().mean().item()
            if i != j:
                assert own == pytest.approx(share)
                assert ((mixed_BCHW[i] == i) | (mixed_BCHW[i] == j)).all()
        rows, columns = (mixed_BCHW != images_BCHW).any(0).any(0).nonzero(as_tuple=True)
        if len(rows):  # a rectangle, the same in all
            assert len(rows) == len(rows.unique()) * len(columns.unique())
    assert (images_BCHW[:, 0, 0, 0] == torch.arange(6.0)).all()  # they themselves stay
    # u is uniform; what is beyond the border is lost: E[(1 - s/4)^2 s^2] of the share s of a side, s^2 uniform
    s = np.sqrt(np.linspace(0.0005, 0.9995, 1000))
    assert 1 - np.mean(shares) == pytest.approx(np.mean(s**2 * (1 - s / 4) ** 2), abs=0.03)


def test_gdumb_with_cutmix_asks_for_both_labels(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner = make(backbone, digits[0], name="gdumb", share=0.1, memory=MEMORY, cutmix=1.0, **PLAIN)
    draw = first_stage(learner, digits[1])[1]
    batch = draw(0)
    loss = learner.method.loss(backbone, batch)
    at = draw(0).generator
    torch.rand((), generator=at)  # whether this step mixes
    mixed_BCHW, other_B, share = cut_and_mix(batch.images_BCHW, at)
    method = cast(Any, learner.method)
    log_BK = method.head(method.vit(mixed_BCHW).pooled_BD).log_softmax(1)
    labels_BK = F.one_hot(batch.labels_B, 4) * share + F.one_hot(batch.labels_B[other_B], 4) * (1 - share)
    assert 0 < share < 1
    assert loss.item() == pytest.approx(-(log_BK * labels_BK).sum(1).mean().item(), rel=1e-4)


def test_gdumb_begins_a_stream_s_micro_task_without_moments(backbone: Backbone, digits: list[ImageSet]) -> None:
    """What it starts again with includes the optimiser, which elsewhere goes on from micro-task to micro-task."""
    for name, kept in (("gdumb", False), ("er", True)):
        learner = Learner(
            make(backbone, name=name, memory=MEMORY).config.model_copy(update={"scenario": "gaussian"}), backbone
        )
        learner.learn(digits[0])
        assert bool(learner.moments) == kept  # nor are any saved, which would be as large as the ViT
        assert bool(first_stage(learner, digits[0])[0].optimizer.state_dict()["state"]) == kept


@pytest.mark.parametrize("draws", [1, 2])
def test_derpp_by_its_definition(draws: int, backbone: Backbone, digits: list[ImageSet]) -> None:
    """Cross-entropy of new images + alpha times the distance of one draw + beta times the cross-entropy of another."""
    settings: dict[str, Any] = {"name": "derpp", "alpha": 0.3, "beta": 0.7, "draws": draws, "memory": MEMORY}
    learner = make(backbone, digits[0], **settings, head_init="uniform")
    batch = first_stage(learner, digits[1])[1](1)
    assert batch.place_B.tolist() == [*range(8, 16), *[-1] * 8, *[-2] * 8 * (draws - 1)]
    first, last = (list(batch.old_index)[start:][:8] for start in (0, 8 * (draws - 1)))
    assert len(set(first)) == len(set(last)) == 8
    assert (first == last) == (draws == 1)
    logits_BK = learner.method.logits(backbone, batch)
    each_B = F.cross_entropy(logits_BK, batch.labels_B, reduction="none")
    apart_RK = logits_BK[8:16, :2] - learner.memory.kept["logits"][first]
    wanted = each_B[:8].mean() + 0.3 * apart_RK.square().sum(1).mean() / 4 + 0.7 * each_B[-8:].mean()
    assert learner.method.loss(backbone, batch).item() == pytest.approx(wanted.item(), rel=1e-5)


def stages_of(learner: Learner, images: ImageSet) -> list[tuple[int, dict[str, Tensor], dict[str, Tensor]]]:
    """Learn a task; of each stage, how many numbers are trained, and the state before and after it."""
    task, found = learner.begin(images), []
    trainer = learner.trainer(task)
    with torch.no_grad():
        for number, stage in enumerate(learner.method.learn(learner.backbone, task)):
            before = state(learner)
            groups = learner.method.parameter_groups(1.0) if stage.groups is None else stage.groups
            trainer.run(stage, number)
            found.append((sum(p.numel() for group in groups for p in group["params"]), before, state(learner)))
    return found


@pytest.mark.parametrize(
    ("name", "options", "own"),
    [("bic", {"bias_steps": 3}, ["alpha", "beta"]), ("co2l", {"head_epochs": 2}, ["head.weight_KD", "head.bias_K"])],
)
def test_the_second_stage_moves_nothing_else(
    name: str, options: dict[str, Any], own: list[str], backbone: Backbone, digits: list[ImageSet]
) -> None:
    learner = make(backbone, digits[0], name=name, memory=MEMORY, train={"weight_decay": 0.1}, **options)
    _, (count, before, after) = stages_of(learner, digits[1])
    assert count == sum(after[part].numel() for part in own)
    moved = {part for part in after if not torch.equal(before[part], after[part])}
    assert moved == set(own)


def test_co2l_without_a_past_is_contrast_alone(backbone: Backbone, digits: list[ImageSet]) -> None:
    settings: dict[str, Any] = {"name": "co2l", "share": 0.1, "memory": MEMORY, "head_epochs": 1}
    one, other = (make(backbone, digits[0], relations=weight, **settings) for weight in (0.0, 1.0))
    assert same(state(one), state(other))
    for learner in (one, other):
        learner.learn(digits[1])
    assert not same(state(one), state(other))


@pytest.mark.parametrize(("falls", "last"), [(True, 0.008), (False, 1)])
def test_the_rate_of_co2l_s_head(falls: bool, last: float, backbone: Backbone, digits: list[ImageSet]) -> None:
    """To a fifth after 60, 75 and 90 of 100 epochs, as in its code."""
    settings: dict[str, Any] = {"name": "co2l", "head_epochs": 20, "head_batch": 16, "head_falls": falls}
    learner = make(backbone, **settings, memory=MEMORY)
    task, rates = learner.begin(digits[0]), []
    with torch.no_grad():
        _, head = learner.method.learn(backbone, task)
    run = learner.trainer(task).prepare(head, 1)
    for _ in range(run.total):
        rates.append(run.optimizer.param_groups[0]["lr"] / 0.1)
        run.optimizer.step()
        if run.schedule is not None:
            run.schedule.step()
    assert len(rates) == 20
    assert rates[-1] == pytest.approx(last)
    assert rates.count(rates[0]) == (12 if falls else 20)


def test_no_image_comes_twice_where_a_mask_fills_the_memory_early(backbone: Backbone, digits: list[ImageSet]) -> None:
    learners, seen = [], []
    for mask in (False, True):
        learner = make(backbone, digits[0], name="co2l", memory=MEMORY, head_epochs=1, train={"mask": mask})
        images = first_stage(learner, digits[1])[0].stage.images
        assert images is not None
        seen.append([images.digest(i) for i in range(len(images))])
        learners.append(
            state(make(backbone, *digits[:2], name="co2l", memory=MEMORY, head_epochs=1, train={"mask": mask}))
        )
    assert len(set(seen[0])) == len(seen[0]) == 32
    assert seen[1] == seen[0]
    assert same(*learners)


@pytest.mark.parametrize("name", ["co2l", "bic", "gdumb"])
def test_a_mask_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"train.mask=true is not read with method.name={name}; leave it out"):
        load_config(name, ["train.mask=true"])
    assert not load_config(name, ["train.mask=false"]).train.mask
    assert load_config("er", ["train.mask=true"]).train.mask


def test_lwf_with_the_square_of_the_temperature(backbone: Backbone, digits: list[ImageSet]) -> None:
    """Four times as much at a temperature of 2: 0.443777 in the place of 0.110944 for (2, 0) against (0, 0)."""
    losses = []
    for alpha, squared in ((0.0, False), (1.0, False), (1.0, True)):
        learner = make(backbone, digits[0], name="lwf", share=1, alpha=alpha, squared=squared)
        batch = first_stage(learner, digits[1])[1](0)
        losses.append(learner.method.loss(backbone, batch).item())
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(4 * (losses[1] - losses[0]), rel=1e-4)


def test_springs_pull_what_they_hold_and_no_new_row(backbone: Backbone, digits: list[ImageSet]) -> None:
    """The gradient is that of the cross-entropy plus weight times stiffness times the distance from rest."""
    gradients = []
    for weight in (0.0, 50.0):
        learner = make(backbone, digits[0], name="ewc", share=0, weight=weight)
        _, batch = first_stage(learner, digits[1])
        head = cast(Any, learner.method).head.weight_KD
        with torch.no_grad():
            head += 0.1  # away from rest
        learner.method.loss(backbone, batch(0)).backward()
        gradients.append(head.grad)
    stiff_KD = cast(Any, learner.method).springs.stiffness.values[0]
    assert stiff_KD[:2].max() > 0
    assert not stiff_KD[2:].any()
    torch.testing.assert_close(gradients[1] - gradients[0], 50 * stiff_KD * 0.1, rtol=1e-3, atol=1e-5)


def test_epochs_offer_no_image_to_the_memory_twice(backbone: Backbone, digits: list[ImageSet]) -> None:
    """A reservoir that each epoch filled anew would hold other images."""
    memory = {"total": 5, "rule": "reservoir"}
    one, three = (make(backbone, *digits[:2], name="er", memory=memory, train={"epochs": n}) for n in (1, 3))
    assert one.memory._digests == three.memory._digests


@pytest.mark.parametrize(("per_class", "corrects"), [(1, False), (2, True)])
def test_bic_without_images_to_correct_by_says_so(
    per_class: int, corrects: bool, backbone: Backbone, digits: list[ImageSet]
) -> None:
    """With one image a class none is set aside: the correction is left out, and learning goes on."""
    learner = make(backbone, digits[0], name="bic", memory={"per_class": per_class})
    for images in digits[1:3]:
        warnings = learner.learn(images).warnings
        assert [text for text in warnings if "bic corrects nothing" in text] == warnings
        assert bool(warnings) != corrects
        assert (cast(Any, learner.method).alpha.item() == 1) != corrects


def test_bic_is_not_corrected_by_old_classes_alone(backbone: Backbone, digits: list[ImageSet]) -> None:
    """New logits would fall without end where no image of a new class is set aside."""
    learner = make(backbone, digits[0], name="bic", memory={"per_class": 8})
    record = learner.learn(digits[1].select([0, 8]))  # one image of each new class
    assert any("bic corrects nothing" in text for text in record.warnings)
    assert cast(Any, learner.method).alpha.item() == 1
