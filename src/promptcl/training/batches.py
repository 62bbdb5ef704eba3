"""Batches of images: views, normalisation and queries, computed only when they are read, and once where possible.

B images, C channels, H W pixels, N images of a set, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Config
from promptcl.data import ImageSet
from promptcl.data.ahead import Ahead, Place
from promptcl.data.augment import eval_view, train_view
from promptcl.runtime import processes
from promptcl.runtime.device import send
from promptcl.runtime.seeding import task_generator
from promptcl.training.memory import Replay
from promptcl.training.queries import QueryCache
from promptcl.training.weak import Weak

Generators = Callable[[str], torch.Generator]
"""Gives the random generator for a purpose, always the same for the same step."""


class Batches:
    """Makes the batches of one learner, and keeps queries in a bounded cache."""

    def __init__(
        self,
        backbone: Backbone,
        config: Config,
        device: torch.device,
        query: Callable[[Tensor], Tensor] | None = None,
        cache_bytes: int = 2**29,
    ) -> None:
        """Cache at most `cache_bytes` of queries, beside those of the set used last.

        query: gives the queries [B, F] of normalised pixels [B, C, H, W]; None for the class token of `backbone`.
        """
        self.backbone, self.config, self.device = backbone, config, device
        self.query = query or backbone.query
        self.ahead = Ahead(config.data.workers)
        self.queries = QueryCache(self.query, config.eval.batch_size, Weak(self._in_order), device, cache_bytes)

    def forget_queries(self) -> None:
        """Compute all queries anew from now on."""
        self.queries.clear()

    @property
    def clean(self) -> bool:
        """Whether queries in training are of the evaluation view, and not of the augmented view."""
        return self.config.data.augment == "none" or self.config.train.query_view == "clean"

    def eval_images(self, images: ImageSet, indices: Sequence[int]) -> Tensor:
        """Normalised pixels [B, C, H, W] of the evaluation view of `images` at `indices`."""
        crop, pixels = self.config.data.eval_crop, self.ahead.images(images, indices)
        return self.backbone.normalise(eval_view(pixels, self.backbone.image_size, crop, self.device))

    def _in_order(self, images: ImageSet, span: Sequence[int]) -> Tensor:
        """As `eval_images`, where the images after `span` are most often asked for next: they are read meanwhile."""
        stop = span[-1] + 1 if span else 0
        coming = [images.place(i) for i in range(stop, min(stop + len(span), len(images)))]
        self.ahead.expect("in order", [*map(images.place, span), *coming])
        pixels_BCHW = self.eval_images(images, span)
        self.ahead.expect("in order", coming)
        return pixels_BCHW

    def train_images(
        self, images: ImageSet, index: Sequence[int], rows: slice, total: int, at: torch.Generator
    ) -> Tensor:
        """Normalised pixels [B, C, H, W] of a random view of `images` at `index`, the `rows` of a batch of `total`."""
        size, data = self.backbone.image_size, self.config.data
        if data.augment == "none":
            return self.eval_images(images, index)
        pixels = self.ahead.images(images, index)
        return self.backbone.normalise(train_view(pixels, size, data, at, self.device, rows, total))

    def evaluation(
        self,
        images: ImageSet,
        labels_N: Tensor,
        together: int,
        at: Generators | None = None,
        everything: bool = False,
        allowed_K: Tensor | None = None,
        kept: Mapping[str, Tensor] | None = None,
    ) -> Iterator[EvalBatch]:
        """Batches of the evaluation view, in order; with several processes those of this one (`mine`), or `everything`.

        together: images that are never cut apart; at: randomness of the batches, None where they need none; allowed_K:
        the training mask, None for all classes; kept: what the memory keeps beside the images, a row each.
        """
        mine = slice(0, len(images)) if everything else self.mine(images, together)
        at = at or (lambda purpose: task_generator(self.config.seed, 0, purpose))
        size = self._size(together)
        for start in range(mine.start, mine.stop, size):
            span = range(start, min(start + size, mine.stop))
            allowed_BK = None if allowed_K is None else allowed_K.expand(len(span), -1)
            rows = {name: send(values[start : span.stop], self.device) for name, values in (kept or {}).items()}
            yield EvalBatch(self, images, span, labels_N[start : span.stop], at, allowed_BK, rows)

    def mine(self, images: ImageSet, together: int) -> slice:
        """Which of `images` this process evaluates: whole batches."""
        return processes.share(len(images), self._size(together))

    def _size(self, together: int) -> int:
        """Images of an evaluation batch, rounded up so that no group of images that depend on each other is cut."""
        return -(-self.config.eval.batch_size // together) * together

    def order(self, images: ImageSet, generator: torch.Generator) -> Tensor:
        """Row numbers of `images` in the order of one epoch; `train.balance` draws all classes equally often."""
        if not self.config.train.balance:
            return torch.randperm(len(images), generator=generator)
        labels_N = torch.as_tensor(images.labels)
        weights_N = 1 / torch.bincount(labels_N)[labels_N].double()
        return torch.multinomial(weights_N, len(images), replacement=True, generator=generator)

    def steps_per_epoch(self, count: int) -> int:
        """Optimiser steps of one epoch over `count` images."""
        size = self.config.train.batch_size
        return max(1, count // size) if self.config.train.drop_last else -(-count // size)

    def epochs(self, count: int) -> int:
        """Epochs over `count` images: `train.epochs`, or up to 8 times as many to reach `train.min_steps`."""
        train = self.config.train
        wanted = -(-(train.min_steps or 0) // self.steps_per_epoch(count))
        return max(train.epochs, min(wanted, 8 * train.epochs))


@dataclass
class EvalBatch:
    """A batch of the evaluation view of images (see `promptcl.Batch`)."""

    batches: Batches
    images: ImageSet
    span: range
    labels_B: Tensor
    generators: Generators
    allowed_BK: Tensor | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    _views: int = 0
    epoch = 0
    old_share = 0.0

    @cached_property
    def images_BCHW(self) -> Tensor:
        """Normalised pixels of the evaluation view."""
        return self.batches._in_order(self.images, self.span)

    @cached_property
    def query_BD(self) -> Tensor:
        """Queries from the cache; where they are not known, of the pixels of this batch."""
        if self.batches.queries.knows(self.images, self.span):
            return self.batches.queries.rows_of(self.images, self.span)
        return self.batches.queries.remember(self.images, self.span, self.images_BCHW)

    def once(self, name: str, compute: Callable[[], Tensor], *of: Tensor) -> Tensor:
        """What `compute` gives, from the cache where it was computed of the same `of`."""
        return self.batches.queries.once(self.images, self.span, name, compute, of)

    @property
    def old_B(self) -> Tensor:
        """All False: nothing is replayed here."""
        return torch.zeros(len(self.labels_B), dtype=torch.bool, device=self.labels_B.device)

    @property
    def place_B(self) -> Tensor:
        """Places of the rows in `images`."""
        return send(torch.arange(self.span.start, self.span.stop), self.labels_B.device)

    @cached_property
    def generator(self) -> torch.Generator:
        """Randomness of this batch."""
        return self.generators(f"batch {self.span.start}")

    def another_view(self) -> Tensor:
        """The same images, in another random view each time."""
        self._views += 1
        count, at = len(self.span), self.generators(f"view {self._views}, batch {self.span.start}")
        return self.batches.train_images(self.images, self.span, slice(0, count), count, at)


@dataclass
class TrainBatch:
    """This process's rows of a training batch: new images, then replayed ones (see `promptcl.Batch`)."""

    batches: Batches
    images: ImageSet | None
    index: Sequence[int]
    """Places of the new rows in `images`, in the whole batch of all processes."""
    labels_B: Tensor
    allowed_BK: Tensor | None
    rows: slice
    """Which rows of the whole batch these are, replayed ones counted."""
    generators: Generators
    replay: Replay | None = None
    old_index: Sequence[int] = ()
    """Places of the replayed rows in the memory, in the whole batch of all processes."""
    epoch: int = 0
    following: TrainBatch | None = None
    """The batch of the next step; its images, and those of the ones that it knows, are read while this is computed."""
    _views: int = 0

    @cached_property
    def _parts(self) -> list[tuple[ImageSet, list[int], slice, int, str]]:
        """For new and replayed images: the set, this process's places in it, their rows, all rows, the purpose."""
        new, parts = len(self.index), []
        if self.images is not None:
            mine = slice(min(self.rows.start, new), min(self.rows.stop, new))
            parts.append((self.images, list(self.index[mine]), mine, new, "view"))
        if self.replay is not None:
            mine = slice(max(self.rows.start - new, 0), max(self.rows.stop - new, 0))
            total = len(self.old_index)
            parts.append((self.replay.images, list(self.old_index[mine]), mine, total, "replayed view"))
        return parts

    @cached_property
    def places(self) -> list[Place]:
        """Where this process's images come from."""
        return [images.place(i) for images, index, *_ in self._parts for i in index]

    @cached_property
    def images_BCHW(self) -> Tensor:
        """Normalised pixels of a random view."""
        return self._view("")

    def _view(self, which: str) -> Tensor:
        # Only here: where no images are looked at but their queries, which are known, none have to be read.
        coming, batch = list(self.places), self.following
        while batch is not None:
            coming, batch = [*coming, *batch.places], batch.following
        self.batches.ahead.expect("steps", coming)
        pixels = [
            self.batches.train_images(images, index, rows, total, self.generators(purpose + which))
            for images, index, rows, total, purpose in self._parts
        ]
        return pixels[0] if len(pixels) == 1 else torch.cat(pixels)

    def another_view(self) -> Tensor:
        """The same images, in another random view each time."""
        self._views += 1
        return self._view(f" {self._views}")

    @cached_property
    def query_BD(self) -> Tensor:
        """Queries [B, D] of the same view, or of the evaluation view (`train.query_view`)."""
        if not self.batches.clean:
            return self.batches.query(self.images_BCHW)
        found = []
        for images, index, *_ in self._parts:
            if self.replay is not None and images is self.replay.images:
                # The memory changes with every (micro-)task, so cached queries of all of it would rarely be used.
                if index:
                    pixels_BCHW = self.batches.eval_images(images, index)
                    found.append(self.batches.query(pixels_BCHW))
            else:
                found.append(self.batches.queries.rows_of(images, index))
        return found[0] if len(found) == 1 else torch.cat(found)

    def once(self, name: str, compute: Callable[[], Tensor], *of: Tensor) -> Tensor:
        """What `compute` gives: a view that is drawn anew each time is never kept."""
        return compute()

    @cached_property
    def old_B(self) -> Tensor:
        """True for replayed rows."""
        whole = torch.arange(len(self.index) + len(self.old_index)) >= len(self.index)
        return send(whole[self.rows], self.batches.device)

    @cached_property
    def place_B(self) -> Tensor:
        """Places of the new rows in the images of the stage, -1 for replayed ones, -2 for those of a second draw."""
        each = self.replay.rows if self.replay is not None else 1
        whole = torch.tensor([*self.index, *(-1 - i // each for i in range(len(self.old_index)))], dtype=torch.long)
        return send(whole[self.rows], self.batches.device)

    @property
    def old_share(self) -> float:
        """Share of replayed rows in the whole batch."""
        return len(self.old_index) / max(1, len(self.index) + len(self.old_index))

    @cached_property
    def kept(self) -> Mapping[str, Tensor]:
        """What was kept beside the replayed rows [R, ...]."""
        if self.replay is None:
            return {}
        rows = torch.tensor(self._parts[-1][1], dtype=torch.long)
        return {name: send(values[rows], self.batches.device) for name, values in self.replay.kept.items()}

    @cached_property
    def generator(self) -> torch.Generator:
        """Random generator of this step."""
        return self.generators("method")
