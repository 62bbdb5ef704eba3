"""Images to batches: views, normalisation, frozen queries, each computed once where it can be.

B images, C channels, H W pixels, N images of a set, D width.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import Config
from promptcl.data.augment import eval_view, train_view
from promptcl.data.images import ImageSet
from promptcl.methods._base import Batch, Method
from promptcl.runtime import processes
from promptcl.runtime.device import send


class Batches:
    """Feeds one learner: its backbone, its settings, its device, and a bounded cache of queries."""

    def __init__(self, backbone: Backbone, config: Config, device: torch.device, cache_bytes: int = 2**29) -> None:
        """Cache at most `cache_bytes` of query features."""
        self.backbone, self.config, self.device = backbone, config, device
        self.cache_bytes = cache_bytes
        self._queries: OrderedDict[int, tuple[weakref.ref[ImageSet], Tensor]] = OrderedDict()

    def _eval_images(self, images: ImageSet, indices: Sequence[int]) -> Tensor:
        crop = self.config.data.eval_crop
        return self.backbone.normalise(eval_view(images.images(indices), self.backbone.image_size, crop, self.device))

    def queries(self, images: ImageSet) -> Tensor:
        """Queries [N, D] of the evaluation view of a whole set; computed once, least recently used sets dropped.

        Several processes compute a part each, so all of them have to ask.
        """
        if id(images) in self._queries:
            self._queries.move_to_end(id(images))
            return self._queries[id(images)][1]
        size = self.config.eval.batch_size
        mine = processes.share(len(images), size)
        parts = [self.backbone.query(self._eval_images(images, span)) for span in _spans(mine, size)]
        queries_ND = processes.gather(parts, mine, (len(images), self.backbone.width), self.device)
        self._keep(images, queries_ND)
        return queries_ND

    def _keep(self, images: ImageSet, queries_ND: Tensor) -> None:
        # A set that nobody else holds goes, with its decoded images and its queries; only then is its id() free again.
        key = id(images)
        self._queries[key] = (weakref.ref(images, lambda _: self._queries.pop(key, None)), queries_ND)
        while len(self._queries) > 1 and sum(q.nbytes for _, q in self._queries.values()) > self.cache_bytes:
            self._queries.popitem(last=False)

    def evaluation(
        self, images: ImageSet, labels_N: Tensor, method: Method, rows: slice = slice(None)
    ) -> Iterator[Batch]:
        """Batches of `rows` in order, evaluation view, for `method`."""
        # The first time, one view of a picture serves query and method, where both take the same batches.
        first = (
            method.needs_images
            and id(images) not in self._queries
            and self._size(method) == self.config.eval.batch_size
            and processes.size() == 1
            and range(len(images))[rows] == range(len(images))
        )
        queries_ND = torch.empty(0) if first else self.queries(images)
        parts: list[Tensor] = []
        for span in _spans(slice(*rows.indices(len(images))), self._size(method)):
            pixels = self._eval_images(images, span) if method.needs_images else None
            if first:
                assert pixels is not None
                parts.append(self.backbone.query(pixels))
            query_BD = parts[-1] if first else queries_ND[span.start : span.stop]
            yield Batch(pixels, query_BD, labels_N[span.start : span.stop])
        if first:
            self._keep(images, torch.cat(parts))

    def mine(self, images: ImageSet, method: Method) -> slice:
        """Which of `images` this process evaluates: whole batches."""
        return processes.share(len(images), self._size(method))

    def _size(self, method: Method) -> int:
        """Images of an evaluation batch, rounded up so that no group of images that vote together is cut."""
        return -(-self.config.eval.batch_size // method.group) * method.group

    def cut(self, order_N: Tensor, count: int) -> Iterator[Tensor]:
        """Rows `order_N` of a set of `count` images, in training batches."""
        train = self.config.train
        for index_B in order_N.split(train.batch_size):
            if train.drop_last and len(index_B) < train.batch_size <= count:
                return
            yield index_B

    def view(
        self,
        images: ImageSet,
        labels_N: Tensor,
        index_B: Tensor,
        needs_images: bool,
        generator: torch.Generator,
        rows: slice = slice(None),
        cached: bool = True,
    ) -> Batch:
        """The training view of the images `index_B` as a batch; the query sees the same view or the clean one.

        rows: only this part of the batch, as it would be in the whole; without `cached`, queries of these images only.
        """
        total, index_B = len(index_B), index_B[rows]
        data, chosen, pixels = self.config.data, index_B.tolist(), None
        clean = data.augment == "none" or self.config.train.query_view == "clean"
        if data.augment == "none":
            pixels = self._eval_images(images, chosen) if needs_images else None
        elif needs_images or not clean:
            size = self.backbone.image_size
            mine = images.images(chosen)
            pixels = self.backbone.normalise(train_view(mine, size, data, generator, self.device, rows, total))
        index_B = send(index_B, self.device)
        if clean and cached:
            query_BD = self.queries(images)[index_B]
        elif not chosen:  # no ViT takes an empty batch
            query_BD = torch.zeros((0, self.backbone.width), device=self.device)
        elif clean:
            query_BD = self.backbone.query(self._eval_images(images, chosen))
        else:
            assert pixels is not None
            query_BD = self.backbone.query(pixels)
        return Batch(pixels, query_BD, labels_N[index_B])

    def order(self, images: ImageSet, generator: torch.Generator) -> Tensor:
        """Rows of `images` in the order of one epoch."""
        if not self.config.train.balance:
            return torch.randperm(len(images), generator=generator)
        labels_N = torch.as_tensor(images.labels)
        weights_N = 1 / torch.bincount(labels_N)[labels_N].double()
        return torch.multinomial(weights_N, len(images), replacement=True, generator=generator)

    def epochs(self, count: int) -> int:
        """Epochs over `count` images."""
        train = self.config.train
        wanted = -(-(train.min_steps or 0) // self.steps_per_epoch(count))
        return max(train.epochs, min(wanted, 8 * train.epochs))

    def steps(self, count: int) -> int:
        """Optimiser steps that learning `count` images takes."""
        return self.epochs(count) * self.steps_per_epoch(count)

    def steps_per_epoch(self, count: int) -> int:
        """Optimiser steps of one epoch over `count` images."""
        size = self.config.train.batch_size
        return max(1, count // size) if self.config.train.drop_last else -(-count // size)


def _spans(rows: slice, size: int) -> list[range]:
    """`rows` in runs of `size`."""
    return [range(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]
