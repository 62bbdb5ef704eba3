"""The training loop: what a stage of a task may ask for, and what it gets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
import torch
from helpers import make_config
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.config import Section
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.layers import GrowingLinear
from promptcl.learner import Learner
from promptcl.methods._base import Batch, Method, Stage, TaskView, masked_cross_entropy
from promptcl.runtime import processes
from promptcl.testing.bench import named
from promptcl.training import PastTask, Silent
from promptcl.training.optim import make_optimizer, make_schedule

Story = Callable[["Told", Backbone, TaskView], Iterator[Stage]]


class Told(Method):
    """A linear head, and a story that a test tells (ours)."""

    story: Story | None = None

    def __init__(self, options: Section, backbone: Backbone, generator: torch.Generator) -> None:
        super().__init__(options, backbone, generator)
        self.head = GrowingLinear(backbone.width, "uniform")
        self.other = nn.Parameter(torch.zeros(2))
        self.seen: list[Batch] = []

    def grow(self, task: TaskView) -> None:
        self.head.grow(task.new_classes, task.generator)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield from (self.story(self, backbone, task) if self.story else super().learn(backbone, task))

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        logits_BK: Tensor = self.head(batch.query_BD)
        return logits_BK

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        self.seen.append(batch)
        return masked_cross_entropy(self.logits(backbone, batch), batch)


def make(backbone: Backbone, story: Story | None = None, **changes: Any) -> tuple[Learner, Told]:
    learner = Learner(make_config(method={"name": named(Told)}, **changes), backbone)
    assert isinstance(learner.method, Told)
    learner.method.story = story
    return learner, learner.method


class Record(Silent):
    """Stages with their steps, and how often a step was told of."""

    def __init__(self) -> None:
        self.stages: list[tuple[int, int]] = []
        self.steps = 0

    def stage(self, number: int, steps: int) -> None:
        self.stages.append((number, steps))

    def step(self) -> None:
        self.steps += 1


@pytest.fixture
def passes(backbone: Backbone) -> Iterator[list[int]]:
    """Images of each pass through the ViT."""
    found: list[int] = []
    hook = backbone.vit.patch_embed.register_forward_hook(lambda module, x, y: found.append(len(x[0])))
    yield found
    hook.remove()


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
    untouched.grow(cast(TaskView, PastTask(learner.config.seed, 0, 2)))
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


def allowed(batch: Batch) -> list[list[bool]] | None:
    return None if batch.allowed_BK is None else batch.allowed_BK.tolist()


def test_classes_of_the_task_compete(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner, method = make(backbone)
    learner.learn(digits[0])
    assert [allowed(batch) for batch in method.seen] == [[[True, True]] * 8] * 2
    method.seen.clear()
    learner.learn(digits[1])
    assert [allowed(batch) for batch in method.seen] == [[[False, False, True, True]] * 8] * 2
    free, method = make(backbone, train={"mask": False})
    free.learn(digits[0])
    assert [allowed(batch) for batch in method.seen] == [None, None]


def test_nothing_is_masked_with_domains(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner, method = make(backbone, scenario="domain")
    learner.learn(digits[0])
    assert [allowed(batch) for batch in method.seen] == [None, None]


def test_a_stage_that_mixes_in_other_classes_has_no_mask(backbone: Backbone, digits: list[ImageSet]) -> None:
    def story(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield Stage(task.new, epochs=1)
        if task.memory is not None:
            yield Stage(task.new + task.memory, epochs=1)

    learner, method = make(backbone, story, memory={"per_class": 2}, train={"batch_size": 64})
    learner.learn(digits[0])
    method.seen.clear()
    learner.learn(digits[1])
    new, both = method.seen
    assert allowed(new) == [[False, False, True, True]] * 16
    assert allowed(both) is None
    # The memory holds images of this task too where a mask is used: 16, and 2 of each of 4 classes.
    assert torch.bincount(both.labels_B).tolist() == [2, 2, 10, 10]


def test_replayed_rows_have_no_mask(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner, method = make(backbone, memory={"per_class": 4, "batch_size": 3})
    learner.learn(digits[0])
    assert not any(batch.old_B.any() for batch in method.seen)
    method.seen.clear()
    learner.learn(digits[1])
    for batch in method.seen:
        assert batch.old_B.tolist() == [False] * 8 + [True] * 3
        assert allowed(batch) == [[False, False, True, True]] * 8 + [[True] * 4] * 3
        assert len(batch.images_BCHW) == len(batch.query_BD) == len(batch.labels_B) == 11
    # Replayed labels are those of the images that are replayed.
    assert {label for batch in method.seen for label in batch.labels_B[8:].tolist()} & {0, 1}


def test_classes_of_the_batch_compete(backbone: Backbone, digits: list[ImageSet]) -> None:
    learner, method = make(backbone, train={"mask_classes": "batch", "batch_size": 1, "epochs": 1})
    learner.learn(digits[0])
    learner.learn(digits[1])
    for batch in method.seen[:16]:
        assert allowed(batch) == [[k == batch.labels_B.item() for k in range(2)]]
    for batch in method.seen[16:]:
        assert allowed(batch) == [[k == batch.labels_B.item() for k in range(4)]]
    assert {batch.labels_B.item() for batch in method.seen} == {0, 1, 2, 3}
    learner, method = make(backbone, train={"mask_classes": "batch", "batch_size": 16})
    learner.learn(digits[0])
    assert allowed(method.seen[0]) == [[True, True]] * 16


def test_quarter_cosine_is_that_of_coda_prompt() -> None:
    rates = schedule("quarter_cosine", epochs=20, per_epoch=3)
    by_epoch = rates[::3]
    assert rates == [rate for rate in by_epoch for _ in range(3)]  # constant within an epoch
    for epoch, rate in {0: 1.0, 1: 0.9967, 10: 0.6833, 18: 0.0974, 19: 0.0157}.items():
        assert by_epoch[epoch] == pytest.approx(rate, abs=6e-5)
    assert schedule("quarter_cosine", epochs=1, per_epoch=4) == [1.0] * 4


def test_other_schedules() -> None:
    assert schedule("constant", 2, 2) == [1.0] * 4
    assert schedule("cosine", 2, 2) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def schedule(kind: Any, epochs: int, per_epoch: int) -> list[float]:
    """The learning rate of each step."""
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], 1.0, make_config().train)
    made, rates = make_schedule(optimizer, kind, epochs * per_epoch, per_epoch), []
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


def fingerprints(batches: Sequence[Batch]) -> list[tuple[list[int], float, float]]:
    """Labels, pixels and a draw of each batch."""
    return [
        (one.labels_B.tolist(), one.images_BCHW.sum().item(), torch.rand(1, generator=one.generator).item())
        for one in batches
    ]


def test_a_step_is_a_function_of_seed_task_stage_and_step(backbone: Backbone, digits: list[ImageSet]) -> None:
    def restless(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        torch.rand(5, generator=task.generator)
        yield Stage(task.new, steps=1)
        for batch in task.batches():
            batch.another_view()
        yield Stage(task.new, steps=3)

    def calm(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield Stage(task.new, steps=2)
        yield Stage(task.new, steps=3)

    found = {}
    for story, before in ((restless, 1), (calm, 2)):
        learner, method = make(backbone, story)
        learner.learn(digits[0])
        found[story] = fingerprints(method.seen[before:])
        assert fingerprints(method.seen[:1]) != found[story][:1]  # another stage
    assert found[restless] == found[calm]
    assert len({pixels for _, pixels, _ in found[calm]}) == 3
    assert len({draw for *_, draw in found[calm]}) == 3


def test_other_seeds_and_tasks_have_other_batches(backbone: Backbone, digits: list[ImageSet]) -> None:
    found = []
    for seed in (1, 2):
        learner, method = make(backbone, seed=seed)
        learner.learn(digits[0])
        learner.learn(digits[0])
        found += [fingerprints(method.seen[:2]), fingerprints(method.seen[2:])]
    assert all(found[i] != found[j] for i in range(4) for j in range(i))


def test_what_a_method_draws_moves_nothing_else(backbone: Backbone, digits: list[ImageSet]) -> None:
    def greedy(method: Told, backbone: Backbone, batch: Batch) -> Tensor:
        torch.rand(9, generator=batch.generator)
        batch.another_view()
        return method.loss(backbone, batch)

    def story(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        yield Stage(task.new, lambda backbone, batch: greedy(method, backbone, batch))

    (one, first), (two, second) = make(backbone, story), make(backbone)
    one.learn(digits[0])
    two.learn(digits[0])
    assert torch.equal(first.head.weight_KD, second.head.weight_KD)
    assert [batch.labels_B.tolist() for batch in first.seen] == [batch.labels_B.tolist() for batch in second.seen]


def test_a_task_gives_queries_collects_rows_and_warns(backbone: Backbone, digits: list[ImageSet]) -> None:
    said: dict[str, Any] = {}

    def story(method: Told, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        said["queries"] = task.queries()
        said["collected"] = task.collect(lambda batch: batch.query_BD[:, :3])
        said["labels"] = torch.cat([batch.labels_B for batch in task.batches(task.held_out)])
        said["sizes"] = len(task.new), len(task.held_out), task.new_classes, task.index
        task.warn("it rains")
        yield from ()

    learner, _ = make(backbone, story, train={"holdout": 0.25}, eval={"batch_size": 5})
    assert learner.learn(digits[0]).warnings == ["it rains"]
    assert said["queries"].shape == (12, backbone.width)
    assert torch.equal(said["collected"], said["queries"][:, :3])
    assert sorted(said["labels"].tolist()) == [0, 0, 1, 1]
    assert said["sizes"] == (12, 4, 2, 0)


def test_what_is_kept_comes_back_with_replayed_rows(backbone: Backbone, digits: list[ImageSet]) -> None:
    class Keeps(Told):
        def keep(self, backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
            return {"logits": self.logits(backbone, batch), "label": batch.labels_B[:, None].float()}

        def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
            assert set(batch.kept) in (set(), {"logits", "label"})
            return super().loss(backbone, batch)

    learner = Learner(make_config(method={"name": named(Keeps)}, memory={"per_class": 4}), backbone)
    method = learner.method
    assert isinstance(method, Keeps)
    for images in digits[:3]:
        method.seen.clear()
        learner.learn(images)
    known = set()
    for batch in method.seen:
        kept, old = batch.kept, batch.labels_B[batch.old_B]
        assert {name: len(rows) for name, rows in kept.items()} == {"logits": 8, "label": 8}
        for label, own, logits in zip(old.tolist(), kept["label"][:, 0].tolist(), kept["logits"], strict=True):
            # Logits of the classes that there were; nothing is known of an image that came with this task.
            number = 0 if label > 3 else 2 + 2 * (label > 1)
            assert int(logits.isfinite().sum()) == number
            assert logits[number:].isnan().all()
            assert own == label if number else own != own
            known.add(number)
    assert known == {0, 2, 4}
