"""Rehearsal: a class-balanced memory of raw images, and how they join a batch. B new rows, R replayed, K classes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptcl.data.images import FileSource, ImageSet, concat
from promptcl.errors import UserError
from promptcl.methods._base import Batch
from promptcl.training.batches import Batches

_NO_LIMIT = 2**20  # short side in pixels: what was learned from was small enough, and is kept as it is


class Memory:
    """At most `per_class` images of each class, a uniform sample of all that were ever added.

    Every image gets a random number when it is added and each class keeps the images with the smallest ones, which is
    reservoir sampling (an image that comes again after it was dropped counts as new). With fewer images than
    `per_class` all are kept. Refers to the images; only `tensors` copies them. An image is known by its
    class and its content: names of files come again.
    """

    def __init__(self, per_class: int) -> None:
        """Start empty."""
        self.per_class = per_class
        self.images: ImageSet | None = None
        self._draws = np.zeros(0)
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        """Images held."""
        return 0 if self.images is None else len(self.images)

    def add(self, images: ImageSet, generator: torch.Generator) -> None:
        """Offer `images`; what is kept depends on `generator` and on what was there. None is held twice."""
        if not self.per_class or not len(images):
            return
        held, digests = set(self._digests), [_digest(images, i) for i in range(len(images))]
        new = [i for i, digest in enumerate(digests) if digest not in held]
        fresh, digests = images.select(new), [*self._digests, *(digests[i] for i in new)]
        draws = np.concatenate([self._draws, torch.rand(len(fresh), generator=generator, dtype=torch.float64).numpy()])
        merged = fresh if self.images is None else concat([self.images, fresh])
        order = np.lexsort((draws, merged.labels))
        counts = np.bincount(merged.labels, minlength=len(merged.classes))
        rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        kept = np.sort(order[rank < self.per_class])
        self.images, self._draws, self._digests = merged.select(kept), draws[kept], [digests[i] for i in kept]

    def tensors(self, classes: Sequence[str]) -> dict[str, Tensor]:
        """All that is held, by names `memory.*`: pictures as PNG files (uint8), labels as indices into `classes`."""
        if self.images is None:
            return {}
        number = [classes.index(name) for name in self.images.classes]
        return {
            **{f"memory.picture.{i}": _bytes(_png(self.images.image(i))) for i in range(len(self))},
            "memory.labels": torch.tensor([number[k] for k in self.images.labels]),
            "memory.draws": torch.from_numpy(self._draws),
            "memory.digests": _bytes(b"".join(self._digests)).view(-1, 32),
        }

    def restore(self, tensors: Mapping[str, Tensor], classes: Sequence[str], cache_mb: int) -> None:
        """Hold what `tensors` were made of; nothing where there are none. Raises UserError where they do not fit."""
        own = {name: tensor for name, tensor in tensors.items() if name.startswith("memory.")}
        if not own or not self.per_class:
            return
        n = own["memory.draws"].numel() if "memory.draws" in own else 0
        files = [f"memory.picture.{i}" for i in range(n)]
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "memory.labels": ((n,), torch.int64),
            "memory.draws": ((n,), torch.float64),
            "memory.digests": ((n, 32), torch.uint8),
        }
        wanted |= {file: ((own[file].numel() if file in own else 0,), torch.uint8) for file in files}
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()}
        if shapes != wanted or not all(0 <= k < len(classes) for k in own["memory.labels"].tolist()):
            raise UserError("the images of its memory are not what is expected; take a copy of it that is whole")
        source = FileSource(files, lambda file: own[file].numpy().tobytes(), "the store", cache_mb, _NO_LIMIT)
        self.images = ImageSet(source, classes, own["memory.labels"].numpy())
        self._draws = own["memory.draws"].numpy()
        self._digests = [row.tobytes() for row in own["memory.digests"].numpy()]


def _digest(images: ImageSet, i: int) -> bytes:
    return hashlib.sha256(images.classes[images.labels[i]].encode() + b"\0" + images.digest(i)).digest()


def _png(image_3HW: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


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
