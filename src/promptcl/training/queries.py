"""Features of images, computed once: a bounded cache of queries, and of whatever else does not change any more.

B images, N images of a set, D width, X any further dimensions.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptcl.data import ImageSet
from promptcl.data.checked import depth_of
from promptcl.runtime import processes
from promptcl.runtime.device import send


@dataclass
class _Kept:
    """One feature of an image set, by batches; `known` says of what each batch was computed."""

    images: weakref.ref[ImageSet]
    values_NX: Tensor
    known: dict[range, bytes]


class QueryCache:
    """Queries and other features of the evaluation view of image sets; the least recently used ones are dropped."""

    def __init__(
        self,
        query: Callable[[Tensor], Tensor],
        size: int,
        view: Callable[[ImageSet, Sequence[int]], Tensor],
        device: torch.device,
        cache_bytes: int,
    ) -> None:
        """Compute `query` of `size` images at a time, seen through `view`; keep at most `cache_bytes` of features,
        beside the one used last.
        """
        self.query, self.size, self.view, self.device, self.cache_bytes = query, size, view, device, cache_bytes
        self._sets: OrderedDict[tuple[int, str], _Kept] = OrderedDict()

    def clear(self) -> None:
        """Drop all that is kept."""
        self._sets.clear()

    def rows_of(self, images: ImageSet, index: Sequence[int]) -> Tensor:
        """Queries [B, D] of the evaluation view of `images` at `index`, from the cache, which computes those it lacks.

        Whole runs of `eval.batch_size` are computed: the last bits of a query depend on the images in its batch.
        """
        kept, of = self._of(images), digest(images)
        for span in self._runs(images, index):
            if kept.known.get(span) != of:
                self._fill(kept, span, self.query(self.view(images, span)), of)
        if isinstance(index, range):
            return kept.values_NX[index.start : index.stop].clone()  # nobody may write to the cache
        return kept.values_NX[send(torch.tensor(index, dtype=torch.long), self.device)]

    def knows(self, images: ImageSet, span: range) -> bool:
        """Whether the queries of the images in `span` are in the cache."""
        known, of = self._of(images).known, digest(images)
        return all(known.get(run) == of for run in self._runs(images, span))

    def whole(self, images: ImageSet) -> Tensor:
        """Queries [N, D] of a whole set. Several processes compute a share each, so all of them must call this."""
        mine = processes.share(len(images), self.size)
        part = self.rows_of(images, range(mine.start, mine.stop))
        if processes.size() == 1:
            return part
        width = max(processes.everyones(part.shape[1]))  # a process without images knows none
        part = part if len(part) else part.new_empty(0, width)
        whole_ND = processes.gather([part], mine, (len(images), width), self.device)
        kept = self._of(images)
        kept.values_NX = whole_ND
        kept.known = dict.fromkeys(self._runs(images, range(len(images))), digest(images))
        return whole_ND.clone()

    def remember(self, images: ImageSet, span: range, pixels_BCHW: Tensor) -> Tensor:
        """Queries [B, D] of `images` at `span`, from the cache or else from their pixels, which are there already."""
        if self._runs(images, span) != [span]:
            return self.rows_of(images, span)
        kept, of = self._of(images), digest(images)
        if kept.known.get(span) != of:
            self._fill(kept, span, self.query(pixels_BCHW), of)
        return kept.values_NX[span.start : span.stop].clone()

    def once(
        self, images: ImageSet, span: range, name: str, compute: Callable[[], Tensor], of: Sequence[Tensor]
    ) -> Tensor:
        """What `compute` gives [B, X] for `images` at `span`, from the cache where it was computed of the same `of`."""
        kept, now = self._of(images, name), digest(images, *of)
        if kept.known.get(span) != now:
            self._fill(kept, span, compute().detach(), now)
        return kept.values_NX[span.start : span.stop].clone()

    def _runs(self, images: ImageSet, index: Sequence[int]) -> list[range]:
        """The runs of `eval.batch_size` images that those at `index` are in."""
        numbers = sorted({i // self.size for i in index})
        return [range(run * self.size, min((run + 1) * self.size, len(images))) for run in numbers]

    def _of(self, images: ImageSet, name: str = "query") -> _Kept:
        """The entry of a feature of `images` in the cache, made if need be."""
        key = id(images), name
        if key in self._sets:
            self._sets.move_to_end(key)
            return self._sets[key]
        # When nobody else holds a set, it is freed and its features are dropped here, before its id() is used again.
        here = weakref.ref(self)
        reference = weakref.ref(images, lambda _: (cache := here()) and cache._sets.pop(key, None))
        empty_NX = torch.empty((len(images), 0), device=self.device)  # replaced by the first batch
        self._sets[key] = _Kept(reference, empty_NX, {})
        return self._sets[key]

    def _fill(self, kept: _Kept, span: range, value_BX: Tensor, of: bytes) -> None:
        values_NX = kept.values_NX
        if values_NX.shape[1:] != value_BX.shape[1:] or values_NX.dtype != value_BX.dtype:
            kept.values_NX, kept.known = value_BX.new_empty(len(values_NX), *value_BX.shape[1:]), {}
            # Of a list: an image set may be freed meanwhile, by another thread or by the garbage collector.
            while (
                len(self._sets) > 1 and sum(one.values_NX.nbytes for one in [*self._sets.values()]) > self.cache_bytes
            ):
                self._sets.popitem(last=False)
        kept.values_NX[span.start : span.stop] = value_BX
        kept.known[span] = of


def digest(images: ImageSet, *of: Tensor) -> bytes:
    """What a feature of `images` was computed of, in short: the depth they are taken for, and the bytes of `of`."""
    found = hashlib.sha256(repr(depth_of(images)).encode())
    for tensor in of:
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()
