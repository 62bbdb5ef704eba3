"""Batches compute what is asked of them, once; views are a function of where they are used."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_config
from told import counted

from promptcl.backbone import Backbone
from promptcl.data import ImageSet
from promptcl.runtime.seeding import task_generator
from promptcl.training import Batches, Replay
from promptcl.training.batches import TrainBatch


@pytest.fixture
def passes(backbone: Backbone) -> Iterator[list[int]]:
    with counted(backbone) as found:
        yield found


def source(backbone: Backbone, cache_bytes: int = 2**29, **changes: Any) -> Batches:
    return Batches(backbone, make_config(**changes), torch.device("cpu"), cache_bytes=cache_bytes)


def labels(images: ImageSet) -> torch.Tensor:
    return torch.as_tensor(images.labels)


def at(step: int) -> Any:
    return lambda purpose: task_generator(1, 0, f"step {step}, {purpose}")


def train_batch(batches: Batches, images: ImageSet, index: list[int], step: int = 0, **more: Any) -> TrainBatch:
    rows = more.pop("rows", slice(0, len(index) + len(more.get("old_index", ()))))
    return TrainBatch(batches, images, index, labels(images)[index][rows], None, rows, at(step), **more)


def test_what_is_not_asked_for_is_not_computed(backbone: Backbone, digits: list[ImageSet], passes: list[int]) -> None:
    batches = source(backbone)
    for batch in batches.evaluation(digits[0], labels(digits[0]), 1):
        assert batch.images_BCHW.shape == (16, 3, 32, 32)
    drawn = train_batch(batches, digits[0], [3, 1])
    assert drawn.images_BCHW.shape == (2, 3, 32, 32)
    assert passes == []
    assert drawn.query_BD is drawn.query_BD
    assert drawn.images_BCHW is drawn.images_BCHW
    assert passes == [2]


def test_queries_are_computed_once(backbone: Backbone, digits: list[ImageSet], passes: list[int]) -> None:
    batches = source(backbone, eval={"batch_size": 5})
    first = [batch.query_BD for batch in batches.evaluation(digits[0], labels(digits[0]), 1)]
    assert passes == [5, 5, 5, 1]
    again = [batch.query_BD for batch in batches.evaluation(digits[0], labels(digits[0]), 1)]
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert torch.equal(batches.queries.whole(digits[0]), torch.cat(first))
    assert torch.equal(batches.queries.rows_of(digits[0], [15, 0, 0]), torch.cat(first)[[15, 0, 0]])
    assert passes == [5, 5, 5, 1]


def test_only_the_runs_that_are_missing_are_computed(
    backbone: Backbone, digits: list[ImageSet], passes: list[int]
) -> None:
    batches = source(backbone, eval={"batch_size": 5})
    batches.queries.rows_of(digits[0], [6])
    assert passes == [5]
    batches.queries.rows_of(digits[0], [9, 15])
    assert passes == [5, 1]


def test_pixels_that_are_there_are_used(backbone: Backbone, digits: list[ImageSet], passes: list[int]) -> None:
    batches, alone = source(backbone), source(backbone)
    (batch,) = batches.evaluation(digits[0], labels(digits[0]), 1)
    query = backbone.query(batch.images_BCHW)
    assert torch.equal(batch.query_BD, query)
    assert torch.equal(alone.queries.whole(digits[0]), query)
    # A run that begins elsewhere goes through the cache, so that an image has one query whatever it is asked with.
    three = batches.queries.remember(digits[0], range(1, 4), batch.images_BCHW[1:4])
    assert torch.equal(three, query[1:4])
    assert passes == [16, 16, 16]


def test_the_cache_is_bounded_and_lets_go(backbone: Backbone, digits: list[ImageSet], passes: list[int]) -> None:
    batches = source(backbone, cache_bytes=16 * backbone.width * 4)  # one set of 16 images
    for images in (digits[0], digits[1], digits[0]):
        batches.queries.whole(images)
    assert passes == [16, 16, 16]
    roomy = source(backbone)
    for _ in range(3):
        roomy.queries.whole(digits[0].select(range(4)))
        gc.collect()
    assert not roomy.queries._sets


def test_groups_are_not_cut(backbone: Backbone, digits: list[ImageSet]) -> None:
    batches = source(backbone, eval={"batch_size": 4})
    assert [len(batch.labels_B) for batch in batches.evaluation(digits[0], labels(digits[0]), 3)] == [6, 6, 4]


def test_a_view_is_a_function_of_seed_task_and_step(backbone: Backbone, digits: list[ImageSet]) -> None:
    batches = source(backbone)
    one, two, other = (train_batch(batches, digits[0], [0, 5, 9], step) for step in (3, 3, 4))
    one.another_view()
    assert torch.equal(one.images_BCHW, two.images_BCHW)
    assert not torch.equal(one.images_BCHW, other.images_BCHW)
    assert torch.equal(torch.rand(3, generator=one.generator), torch.rand(3, generator=two.generator))


def test_another_view_is_another_and_reproducible(backbone: Backbone, digits: list[ImageSet]) -> None:
    batches = source(backbone)
    one, two = (train_batch(batches, digits[0], [0, 5, 9], 3) for _ in range(2))
    views = [one.images_BCHW, one.another_view(), one.another_view()]
    again = [two.another_view(), two.another_view(), two.images_BCHW]
    assert [torch.equal(a, b) for a, b in zip(views, [again[2], *again[:2]], strict=True)] == [True] * 3
    assert not any(torch.equal(views[i], views[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    still = source(backbone, data={"augment": "none"})
    batch = train_batch(still, digits[0], [0, 5, 9])
    assert torch.equal(batch.another_view(), batch.images_BCHW)
    (whole,), (same,) = (batches.evaluation(digits[0], labels(digits[0]), 1) for _ in range(2))
    views, again = ([one.another_view(), one.another_view()] for one in (whole, same))
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[0], whole.images_BCHW)


@pytest.mark.parametrize("cut", [slice(0, 2), slice(1, 4), slice(3, 5)])
def test_a_process_computes_its_rows_of_the_whole_batch(backbone: Backbone, digits: list[ImageSet], cut: slice) -> None:
    batches = source(backbone)
    replay = Replay(digits[1], labels(digits[1]), 2, {"logits": torch.arange(16.0)[:, None]})
    shared: dict[str, Any] = {"replay": replay, "old_index": [7, 2]}
    whole = train_batch(batches, digits[0], [0, 5, 9], **shared)
    part = train_batch(batches, digits[0], [0, 5, 9], rows=cut, **shared)
    assert torch.equal(part.images_BCHW, whole.images_BCHW[cut])
    assert torch.equal(part.another_view(), whole.another_view()[cut])
    assert part.old_B.tolist() == [False, False, False, True, True][cut]
    assert part.kept["logits"].flatten().tolist() == [7.0, 2.0][max(cut.start - 3, 0) : max(cut.stop - 3, 0)]
    torch.testing.assert_close(part.query_BD, whole.query_BD[cut], atol=1e-5, rtol=1e-5)


def test_queries_of_the_view_or_of_the_image_as_it_is(backbone: Backbone, digits: list[ImageSet]) -> None:
    replay = Replay(digits[1], labels(digits[1]), 2)
    for view in ("augmented", "clean"):
        batches = source(backbone, train={"query_view": view})
        batch = train_batch(batches, digits[0], [0, 5], replay=replay, old_index=[7, 2])
        if view == "augmented":
            assert torch.equal(batch.query_BD, backbone.query(batch.images_BCHW))
        else:
            wanted = torch.cat([batches.queries.whole(digits[0])[[0, 5]], batches.queries.whole(digits[1])[[7, 2]]])
            torch.testing.assert_close(batch.query_BD, wanted, atol=1e-5, rtol=1e-5)


def test_two_sets_are_joined_by_the_names_of_their_classes(digits: list[ImageSet]) -> None:
    both = digits[1] + digits[0].renamed(("3", "new"))
    assert both.classes == ("2", "3", "new")
    assert both.labels.tolist() == [*digits[1].labels, *(digits[0].labels + 1)]
    assert torch.equal(both.image(16), digits[0].image(0))
    assert len(digits[1]) == 16


def test_balanced_order_draws_classes_alike(backbone: Backbone) -> None:
    images = ImageSet.from_arrays(np.zeros((400, 4, 4), dtype=np.uint8), ["a"] * 380 + ["b"] * 20)
    order = source(backbone, train={"balance": True}).order(images, task_generator(0, 0, "x"))
    assert 130 < int((labels(images)[order] == 1).sum()) < 270
    plain = source(backbone).order(images, task_generator(0, 0, "x"))
    assert sorted(plain.tolist()) == list(range(400))


def test_images_without_those_of_another_set(digits: list[ImageSet]) -> None:
    both = digits[0] + digits[1]
    left = both.without(digits[0].renamed(("x", "y")))  # by content, whatever they are called
    assert [left.digest(i) for i in range(len(left))] == [digits[1].digest(i) for i in range(16)]
    assert left.classes == both.classes
    assert len(both.without(both)) == 0
