"""Rehearsal: a class-balanced memory of raw images, and how they join a batch. B new rows, R replayed, K classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from promptcl.batches import Batches
from promptcl.data import ImageSet
from promptcl.methods._base import Batch
from promptcl.parts import concat


class Memory:
    """At most `per_class` images of each class, a uniform sample of all that were ever added.

    Every image gets a random number when it is added and each class keeps the images with the smallest ones, which is
    reservoir sampling (an image that comes again after it was dropped counts as new). With fewer images than
    `per_class` all are kept. Refers to the images; copies none.
    """

    def __init__(self, per_class: int) -> None:
        """Start empty."""
        self.per_class = per_class
        self.images: ImageSet | None = None
        self._draws = np.zeros(0)

    def __len__(self) -> int:
        """Images held."""
        return 0 if self.images is None else len(self.images)

    def add(self, images: ImageSet, generator: torch.Generator) -> None:
        """Offer `images`; what is kept depends on `generator` and on what was there. None is held twice."""
        held = set() if self.images is None else {self.images.name(i) for i in range(len(self.images))}
        fresh = images.select([i for i in range(len(images)) if images.name(i) not in held])
        draws = np.concatenate([self._draws, torch.rand(len(fresh), generator=generator, dtype=torch.float64).numpy()])
        merged = fresh if self.images is None else concat([self.images, fresh])
        order = np.lexsort((draws, merged.labels))
        counts = np.bincount(merged.labels, minlength=len(merged.classes))
        rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        kept = np.sort(order[rank < self.per_class])
        self.images, self._draws = merged.select(kept), draws[kept]


@dataclass(frozen=True)
class Replay:
    """The memory while one task is learned."""

    images: ImageSet
    labels_N: Tensor
    """Class ids of the memory on the device."""
    rows: int
    """Images replayed with each batch [R]."""

    def join(
        self,
        batch: Batch,
        present: Tensor | None,
        batches: Batches,
        needs_images: bool,
        generator: torch.Generator,
        rows: slice = slice(None),
    ) -> tuple[Batch, Tensor | None]:
        """`batch` with R rows of the memory behind its own, and the mask of each row [B + R, K].

        Rows are drawn uniformly, without replacement where the memory is large enough. New rows keep
        their mask `present` [K]; replayed rows have none, since they are what compares classes of different tasks.
        rows: only this part of the R rows, as it would be in the whole.
        """
        n = len(self.images)
        if n >= self.rows:
            index_R = torch.randperm(n, generator=generator)[: self.rows]
        else:
            index_R = torch.randint(n, (self.rows,), generator=generator)
        # The memory changes with every (micro-)task: the queries of all of it would rarely be used.
        old = batches.view(self.images, self.labels_N, index_R, needs_images, generator, rows, cached=False)
        pixels = None
        if batch.images_BCHW is not None and old.images_BCHW is not None:
            pixels = torch.cat([batch.images_BCHW, old.images_BCHW])
        joined = Batch(pixels, torch.cat([batch.query_BD, old.query_BD]), torch.cat([batch.labels_B, old.labels_B]))
        if present is None:
            return joined, None
        rows_BK = present.expand(len(batch.labels_B), -1)
        return joined, torch.cat([rows_BK, torch.ones_like(present).expand(len(old.labels_B), -1)])
