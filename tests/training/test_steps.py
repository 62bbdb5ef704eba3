"""Each step of a stage: which classes compete, which images it sees, and where its randomness comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from helpers import make_config
from told import Told, make
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.learner import Learner
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.testing.bench import named


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
    for telling, before in ((restless, 1), (calm, 2)):
        learner, method = make(backbone, telling)
        learner.learn(digits[0])
        found[telling] = fingerprints(method.seen[before:])
        assert fingerprints(method.seen[:1]) != found[telling][:1]  # another stage
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


class Keeps(Told):
    def keep(self, backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.logits(backbone, batch), "label": batch.labels_B[:, None].float()}

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        assert set(batch.kept) in (set(), {"logits", "label"})
        return super().loss(backbone, batch)


def test_what_is_kept_comes_back_with_replayed_rows(backbone: Backbone, digits: list[ImageSet]) -> None:
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
