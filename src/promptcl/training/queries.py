"""Queries of images, computed once: a bounded cache. B images, N images of a set, D width."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptcl.data import ImageSet
from promptcl.runtime import processes
from promptcl.runtime.device import send


@dataclass
class _Queries:
    """Cached queries of an image set, in runs of `eval.batch_size` images; `known` says which are computed."""

    images: weakref.ref[ImageSet]
    values_ND: Tensor
    known: list[bool]


class QueryCache:
    """Queries of the evaluation view of image sets; the least recently used sets are dropped."""

    def __init__(
        self,
        query: Callable[[Tensor], Tensor],
        size: int,
        view: Callable[[ImageSet, Sequence[int]], Tensor],
        device: torch.device,
        cache_bytes: int,
    ) -> None:
        """Compute `query` of `size` images at a time, seen through `view`; keep at most `cache_bytes`, beside those of
        the set used last.
        """
        self.query, self.size, self.view, self.device, self.cache_bytes = query, size, view, device, cache_bytes
        self._sets: OrderedDict[int, _Queries] = OrderedDict()

    def clear(self) -> None:
        """Drop all queries."""
        self._sets.clear()

    def rows_of(self, images: ImageSet, index: Sequence[int]) -> Tensor:
        """Queries [B, D] of the evaluation view of `images` at `index`, from the cache, which computes those it lacks.

        Whole runs of `eval.batch_size` are computed: the last bits of a query depend on the images in its batch.
        """
        size, known = self.size, self._of(images)
        for run in sorted({i // size for i in index}):
            if not known.known[run]:
                span = range(run * size, min((run + 1) * size, len(images)))
                self._fill(known, run, self.query(self.view(images, span)))
        if isinstance(index, range):
            return known.values_ND[index.start : index.stop].clone()  # nobody may write to the cache
        return known.values_ND[send(torch.tensor(index, dtype=torch.long), self.device)]

    def knows(self, images: ImageSet, span: range) -> bool:
        """Whether the queries of the images in `span` are in the cache."""
        size, known = self.size, self._of(images).known
        return all(known[span.start // size : -(-span.stop // size)])

    def whole(self, images: ImageSet) -> Tensor:
        """Queries [N, D] of a whole set. Several processes compute a share each, so all of them must call this."""
        mine = processes.share(len(images), self.size)
        part = self.rows_of(images, range(mine.start, mine.stop))
        if processes.size() == 1:
            return part
        width = max(processes.everyones(part.shape[1]))  # a process without images knows none
        part = part if len(part) else part.new_empty(0, width)
        whole_ND = processes.gather([part], mine, (len(images), width), self.device)
        known = self._of(images)
        known.values_ND, known.known = whole_ND, [True] * len(known.known)
        return whole_ND.clone()

    def _of(self, images: ImageSet) -> _Queries:
        """The entry of `images` in the cache, made if need be."""
        key = id(images)
        if key in self._sets:
            self._sets.move_to_end(key)
            return self._sets[key]
        # When nobody else holds a set, it is freed and its queries are dropped here, before its id() is used again.
        reference = weakref.ref(images, lambda _: self._sets.pop(key, None))
        runs = -(-len(images) // self.size)
        empty_ND = torch.empty((len(images), 0), device=self.device)  # widened by the first query
        self._sets[key] = _Queries(reference, empty_ND, [False] * runs)
        return self._sets[key]

    def _fill(self, known: _Queries, run: int, query_BD: Tensor) -> None:
        start = run * self.size
        if not known.values_ND.shape[1]:
            known.values_ND = query_BD.new_empty(len(known.values_ND), query_BD.shape[1])
            while len(self._sets) > 1 and sum(one.values_ND.nbytes for one in self._sets.values()) > self.cache_bytes:
                self._sets.popitem(last=False)
        known.values_ND[start : start + len(query_BD)] = query_BD
        known.known[run] = True

    def remember(self, images: ImageSet, span: range, pixels_BCHW: Tensor) -> Tensor:
        """Queries [B, D] of `images` at `span`, from the cache or else from their pixels, which are there already."""
        size, known = self.size, self._of(images)
        if span.start % size == 0 and len(span) == min(size, len(images) - span.start):
            if not known.known[span.start // size]:
                self._fill(known, span.start // size, self.query(pixels_BCHW))
            return known.values_ND[span.start : span.stop].clone()
        return self.rows_of(images, span)
