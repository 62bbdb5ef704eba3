"""The training loop: what a stage of a task may ask for, and what it gets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from helpers import make_config
from told import Record, Told, counted, make
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.layers import falling
from promptcl.learner import Learner
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.runtime import processes
from promptcl.training import PastTask
from promptcl.training.optim import make_optimizer, make_schedule


@pytest.fixture
def passes(backbone: Backbone) -> Iterator[list[int]]:
    with counted(backbone) as found:
        yield found


def test_a_method_that_reads_no_query_makes_one_pass(
    backbone: Backbone, digits: list[ImageSet], passes: list[int]
) -> None:
    learner = Learner(make_config(method={"name": "oneprompt"}, train={"epochs": 3}), backbone)
    learner.learn(digits[0])
    assert passes == [8] * 6  # 16 images in batches of 8, three times


def test_prompts_chosen_by_a_query_cost_a_second_pass(
    backbone: Backbone, digits: list[ImageSet], passes: list[int]
) -> None:
    Learner(make_config(train={"epochs": 3}), backbone).learn(digits[0])
    assert passes == [8] * 12


def test_a_method_of_clean_queries_makes_none_after_the_first_epoch(
    backbone: Backbone, digits: list[ImageSet], passes: list[int]
) -> None:
    settings = {"epochs": 3, "query_view": "clean"}
    learner = Learner(make_config(method={"name": "linear"}, train=settings, eval={"batch_size": 5}), backbone)
    learner.learn(digits[0])
    assert sum(passes) == len(digits[0])
    learner.evaluate(digits[0])
    assert sum(passes) == len(digits[0])  # the very queries that the head learned from


def test_a_stage_sees_what_the_one_before_has_learned(backbone: Backbone, digits: list[ImageSet]) -> None:
    heads: list[Tensor] = []

    def story(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        assert not torch.is_grad_enabled()
        for _ in range(2):
            heads.append(method.head.weight_KD.detach().clone())
            yield Stage(task.new)
            assert not method.training
        heads.append(method.head.weight_KD.detach().clone())

    learner, method = make(backbone, story)
    record = Record()
    learned = learner.learn(digits[0], progress=record)
    assert [torch.equal(a, b) for a, b in itertools.pairwise(heads)] == [False, False]
    assert torch.equal(heads[-1], method.head.weight_KD)
    assert record.stages == [(0, 2), (1, 2)]
    assert record.steps == 4
    assert learned.images == 32


def test_loss_groups_and_rate_of_a_stage_are_its_own(backbone: Backbone, digits: list[ImageSet]) -> None:
    def own(method: Told) -> Callable[[Backbone, Batch], Tensor]:
        return lambda backbone, batch: method.other.sum() + 0 * method.head.weight_KD.sum()

    def story(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        first, second = method.other[:1], method.other[1:]
        assert first.shape == second.shape
        yield Stage(task.new, own(method), [{"params": [method.other]}], lr=0.25)
        yield Stage(task.new, own(method), [{"params": [method.other], "lr": 0.5}], lr=0.25)
        yield Stage(task.new, own(method), [{"params": [method.other]}])

    learner, method = make(backbone, story, train={"optimizer": "adam", "lr": 1.0, "batch_size": 16})
    learner.learn(digits[0])
    assert method.seen == []  # its own loss was never asked for
    # Adam's first step is the learning rate: one step each of 0.25, 0.5 and the 1.0 of `train`.
    torch.testing.assert_close(method.other.detach(), torch.full((2,), -1.75))
    untouched = make(backbone)[1]
    untouched.grow(cast(TaskView, PastTask(learner.config.seed, 0, 2, 2)))
    assert torch.equal(method.head.weight_KD, untouched.head.weight_KD)


@pytest.mark.parametrize(
    ("stage", "steps"),
    [({}, 4), ({"epochs": 3}, 6), ({"steps": 5}, 5), ({"epochs": 9, "steps": 1}, 1), ({"steps": 0}, 0)],
)
def test_epochs_or_steps(backbone: Backbone, digits: list[ImageSet], stage: dict[str, Any], steps: int) -> None:
    learner, method = make(backbone, lambda m, b, task: iter([Stage(task.new, **stage)]), train={"epochs": 2})
    record = Record()
    learner.learn(digits[0], progress=record)
    assert len(method.seen) == record.steps == steps
    assert record.stages == ([(0, steps)] if steps else [])


def test_steps_go_on_through_epochs(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner, method = make(backbone, lambda m, b, task: iter([Stage(task.new, steps=3)]))
    learner.learn(digits[0])
    first, second, third = [sorted(batch.index) for batch in method.seen]  # type: ignore[attr-defined]
    assert sorted(first + second) == list(range(16))
    assert third not in (first, second)


def test_a_stage_without_images_draws_what_it_learns_itself(
    backbone: Backbone, digits: list[ImageSet], passes: list[int]
) -> None:
    drawn: list[float] = []

    def loss(backbone: Backbone, batch: Batch) -> Tensor:
        assert len(batch.labels_B) == 0
        assert batch.allowed_BK is None
        drawn.append(torch.rand(1, generator=batch.generator).item())
        return method.other.sum() * drawn[-1]

    def groups(method: Told) -> list[dict[str, Any]]:
        return [{"params": [method.other]}]

    learner, method = make(backbone, lambda m, b, task: iter([Stage(None, loss, groups(m), steps=3)]))
    assert learner.learn(digits[0]).images == 16
    assert len(set(drawn)) == 3
    assert passes == []
    assert (method.other < 0).all()
    learner, method = make(backbone, lambda m, b, task: iter([Stage(None, loss, groups(m))]))
    with pytest.raises(ValueError, match="a stage without images needs `steps`"):
        learner.learn(digits[0])


def test_an_empty_set_is_no_stage(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner, _ = make(backbone, lambda m, b, task: iter([Stage(task.new.select([])), Stage(task.new, steps=1)]))
    record = Record()
    learner.learn(digits[0], progress=record)
    assert record.stages == [(1, 1)]


def test_after_each_step_a_method_may_correct(backbone: Backbone, digits: list[ImageSet]) -> None:
    called: list[bool] = []

    def story(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        def clamp() -> None:
            called.append(torch.is_grad_enabled())
            method.head.weight_KD.clamp_(-0.01, 0.01)

        yield Stage(task.new, epochs=2, after_step=clamp)

    learner, method = make(backbone, story)
    learner.learn(digits[0])
    assert called == [False] * 4
    assert method.head.weight_KD.abs().max() <= 0.01


def test_a_loss_that_is_not_finite_is_refused(backbone: Backbone, digits: list[ImageSet]) -> None:
    def loss(backbone: Backbone, batch: Batch) -> Tensor:
        return method.other.sum() * float("inf")

    learner, method = make(backbone, lambda m, b, task: iter([Stage(task.new, loss)]))
    with pytest.raises(UserError, match=r"lower the learning rate, e\.g\. train\.lr=0\.001"):
        learner.learn(digits[0])


@pytest.mark.parametrize(("together", "rows"), [(1, [(0, 4), (4, 8)]), (3, [(0, 3), (3, 8)]), (0, [(0, 8), (0, 0)])])
def test_rows_that_belong_together_are_one_process_s(
    backbone: Backbone, digits: list[ImageSet], together: int, rows: list[tuple[int, int]]
) -> None:
    learner, _ = make(backbone)
    task = learner.begin(digits[0])
    trainer = learner.trainer(task)
    run = trainer.prepare(Stage(task.new, together=together), 0)
    order = torch.arange(16)
    whole, share = trainer.batch(run, 0, order)
    assert share == 1
    for number, (start, stop) in enumerate(rows):
        with pytest.MonkeyPatch.context() as patch:  # one of two processes, which exchange nothing here
            patch.setattr(processes, "_rank", number)
            patch.setattr(processes, "_size", 2)
            part, share = trainer.batch(run, 0, order)
            assert share == (stop - start) / 8
            assert torch.equal(part.labels_B, whole.labels_B[start:stop])
            if share:
                assert torch.equal(part.images_BCHW, whole.images_BCHW[start:stop])


def test_quarter_cosine_is_that_of_coda_prompt() -> None:
    rates = schedule("quarter_cosine", epochs=20, per_epoch=3)
    by_epoch = rates[::3]
    assert rates == [rate for rate in by_epoch for _ in range(3)]  # constant within an epoch
    for epoch, rate in {0: 1.0, 1: 0.9967, 10: 0.6833, 18: 0.0974, 19: 0.0157}.items():
        assert by_epoch[epoch] == pytest.approx(rate, abs=6e-5)
    assert schedule("quarter_cosine", epochs=1, per_epoch=4) == [1.0] * 4


def test_warm_restarts_are_those_of_gdumb() -> None:
    """Which sets the first two epochs by hand, and then steps torch's scheduler once an epoch."""
    rates = schedule("restarts", epochs=20, per_epoch=3)
    assert rates == [rate for rate in rates[::3] for _ in range(3)]
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], 1.0, make_config().train)
    wanted = CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2, eta_min=0.01)
    found = [0.1, 1.0]
    for _ in range(18):
        optimizer.step()
        wanted.step()
        found.append(optimizer.param_groups[0]["lr"])
    assert rates[::3] == pytest.approx(found)
    assert [epoch for epoch, rate in enumerate(rates[::3]) if rate == 1] == [1, 2, 4, 8, 16]
    assert schedule("restarts", epochs=1, per_epoch=4) == [1.0] * 4


def test_other_schedules() -> None:
    assert schedule("constant", 2, 2) == [1.0] * 4
    assert schedule("cosine", 2, 2) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert schedule("step", 4, 2, milestones=[1, 3]) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_a_rate_that_a_stage_gives_takes_the_place_of_the_schedule() -> None:
    rates = schedule("cosine", 20, 1, rate=falling(0.2, 0.6, 0.75, 0.9))
    assert rates == pytest.approx([1] * 12 + [0.2] * 3 + [0.04] * 3 + [0.008] * 2)


@pytest.mark.parametrize("settings", [{"schedule": "step"}, {"milestones": [3]}])
def test_milestones_belong_to_the_step_schedule(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="schedule=step and milestones go together"):
        make_config(train=settings)


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        # From 1, with gradient 1 and weight decay 0.5, two steps at 0.1, by hand.
        ({"optimizer": "sgd", "nesterov": False}, [0.85, 0.85 - 0.1 * (0.9 * 1.5 + 1.425)]),
        ({"optimizer": "sgd"}, [1 - 0.1 * 1.5 * 1.9, 0.715 - 0.1 * (1.3575 + 0.9 * (0.9 * 1.5 + 1.3575))]),
        ({"optimizer": "adam"}, [0.9]),
        ({"optimizer": "adamw"}, [0.95 - 0.1, 0.85 * 0.95 - 0.1]),
    ],
)
def test_optimisers_by_hand(settings: dict[str, Any], moved: list[float]) -> None:
    x = nn.Parameter(torch.ones(1))
    optimizer = make_optimizer([{"params": [x]}], 0.1, make_config(train={"weight_decay": 0.5, **settings}).train)
    for wanted in moved:
        x.grad = torch.ones(1)
        optimizer.step()
        assert x.item() == pytest.approx(wanted, abs=1e-5)


def schedule(kind: Any, epochs: int, per_epoch: int, rate: Any = None, **settings: Any) -> list[float]:
    """The learning rate of each step."""
    train = make_config(train={"schedule": kind, **settings}).train
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], 1.0, train)
    made, rates = make_schedule(optimizer, train, epochs * per_epoch, per_epoch, rate), []
    for _ in range(epochs * per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if made is not None:
            made.step()
    return rates


def test_a_stage_has_a_schedule_of_its_own(backbone: Backbone, digits: list[ImageSet]) -> None:
    moved: list[float] = []

    def story(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        def loss(backbone: Backbone, batch: Batch) -> Tensor:
            moved.append(method.other[0].item())
            return method.other.sum()

        for epochs in (2, 3):
            with torch.no_grad():
                method.other.zero_()
            yield Stage(task.new, loss, [{"params": [method.other]}], epochs=epochs, lr=1.0)
            moved.append(method.other[0].item())

    settings = {"schedule": "quarter_cosine", "batch_size": 16, "clip_norm": None}
    learner, _ = make(backbone, story, train=settings)
    learner.learn(digits[0])
    steps = [round(a - b, 4) for a, b in itertools.pairwise(moved)]
    assert steps[:2] == [1.0, 0.0157]
    assert steps[3:] == [1.0, 0.7126, 0.0157]
