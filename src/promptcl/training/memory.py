"""Rehearsal: a class-balanced memory of raw images, and what a method keeps beside them. R replayed rows."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from promptcl.data import FileSource, ImageSet, concat
from promptcl.errors import UserError

_NO_LIMIT = 2**20  # short side in pixels: stored images are small enough already, and are not resized


class Memory:
    """At most `per_class` images of each class, a uniform sample of all that were ever added.

    Every image gets a random number when it is added and each class keeps the images with the smallest ones, which is
    reservoir sampling (an image that comes again after it was dropped counts as new). With fewer images than
    `per_class` all are kept. Refers to the images; only `tensors` copies them. An image is known by its class and its
    content, since file names may repeat.
    """

    def __init__(self, per_class: int) -> None:
        """Start empty."""
        self.per_class = per_class
        self.clear()

    def clear(self) -> None:
        """Drop everything that is held."""
        self.images: ImageSet | None = None
        self.kept: dict[str, Tensor] = {}
        """What a method keeps beside the images, by name: float, one row an image, NaN where nothing was known."""
        self._draws = np.zeros(0)
        self._digests: list[bytes] = []
        self._fresh = np.zeros(0, dtype=bool)  # True for images that have no row in `kept` yet
        self._waiting: dict[str, Tensor] = {}  # `kept` of a store without images, until they are added again

    def __len__(self) -> int:
        """Number of images held."""
        return 0 if self.images is None else len(self.images)

    def add(self, images: ImageSet, generator: torch.Generator) -> None:
        """Offer `images` to the memory; `generator` decides which are kept. No image is held twice."""
        if not self.per_class or not len(images):
            return
        held, digests = set(self._digests), [_digest(images, i) for i in range(len(images))]
        new = [i for i, digest in enumerate(digests) if digest not in held]
        offered, digests = images.select(new), [*self._digests, *(digests[i] for i in new)]
        more = torch.rand(len(offered), generator=generator, dtype=torch.float64).numpy()
        draws, fresh = np.concatenate([self._draws, more]), np.concatenate([self._fresh, np.ones(len(new), dtype=bool)])
        merged = offered if self.images is None else concat([self.images, offered])
        kept = self._smallest(merged, draws)
        self.images, self._draws, self._digests = merged.select(kept), draws[kept], [digests[i] for i in kept]
        self._fresh = fresh[kept]
        for name, rows in self.kept.items():
            padded = torch.cat([rows, rows.new_full((len(new), *rows.shape[1:]), float("nan"))])
            self.kept[name] = padded[torch.from_numpy(kept)]

    def _smallest(self, images: ImageSet, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Places of the images with the smallest random numbers, at most `per_class` of each class, in order."""
        order = np.lexsort((draws, images.labels))
        counts = np.bincount(images.labels, minlength=len(images.classes))
        rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        return np.sort(order[rank < self.per_class])

    def mend(self, fate: Mapping[bytes, tuple[str, bytes]], names: Mapping[str, str]) -> None:
        """Rename the classes of images, and drop those that have no class any more.

        fate: of an image, by its `key`, the class and the key that it has now. An image that is not in it goes by its
        class, in `names`; one that is not there either is dropped. So is one that a class has no room for now.
        """
        if not names:
            self._waiting = {}
        if self.images is None:
            return
        now: dict[bytes, tuple[int, str]] = {}  # by its new key, so that no image is held twice
        for row, (known, label) in enumerate(zip(self._digests, self.images.labels, strict=True)):
            name = names.get(self.images.classes[label])
            if known in fate:
                now.setdefault(fate[known][1], (row, fate[known][0]))
            elif name is not None:
                now.setdefault(known, (row, name))
        if not now:
            self.clear()
            return
        rows, labels = [row for row, _ in now.values()], [name for _, name in now.values()]
        classes = list(dict.fromkeys(labels))
        images = self.images.select(rows).labelled(classes, [classes.index(name) for name in labels])
        kept = self._smallest(images, self._draws[rows])
        digests, places = list(now), np.array(rows)[kept]
        self.images, self._draws, self._fresh = images.select(kept), self._draws[places], self._fresh[places]
        self._digests = [digests[i] for i in kept]
        self.kept = {name: values[torch.from_numpy(places)] for name, values in self.kept.items()}

    def keep(self, compute: Callable[[ImageSet], Mapping[str, Tensor]]) -> None:
        """Compute what is kept beside the images that came since the last call; `compute` gives a row for each image.

        Rows of a later task may be longer (logits of more classes): the shorter ones end in NaN.
        """
        new = np.flatnonzero(self._fresh)
        if self.images is None or not len(new):
            return
        for name, rows in compute(self.images.select(new)).items():
            old = self.kept.get(name, torch.empty(0, *rows.shape[1:]))
            width = [max(a, b) for a, b in zip(old.shape[1:], rows.shape[1:], strict=True)]
            whole = torch.full((len(self), *width), float("nan"))
            whole[tuple(slice(n) for n in old.shape)] = old
            for place, row in zip(new.tolist(), rows.detach().float().cpu(), strict=True):
                whole[place][tuple(slice(n) for n in row.shape)] = row
            self.kept[name] = whole
        self._fresh = np.zeros(len(self), dtype=bool)

    def kept_of(self, images: ImageSet) -> dict[str, Tensor]:
        """What is kept beside each of `images`, which need not be in the order of the memory; NaN where nothing is."""
        if not self.kept or images is self.images:
            return self.kept
        place = {digest: row for row, digest in enumerate(self._digests)}
        found = [place.get(_digest(images, i), -1) for i in range(len(images))]
        index = torch.tensor(found, dtype=torch.long)
        return {
            name: torch.where((index >= 0).view(-1, *[1] * (rows.ndim - 1)), rows[index], torch.nan)
            for name, rows in self.kept.items()
        }

    def settle(self) -> None:
        """Give images that were added again, after loading a store without images, the rows it kept beside them."""
        if self._waiting and all(len(rows) == len(self) for rows in self._waiting.values()):
            self.kept, self._fresh = self._waiting, np.zeros(len(self), dtype=bool)
        self._waiting = {}

    def tensors(self, classes: Sequence[str], images: bool) -> dict[str, Tensor]:
        """The memory as tensors called `memory.*`: images as PNG files (uint8), labels as indices into `classes`.

        Without `images`, only what is kept beside them.
        """
        kept = {f"memory.kept.{name}": rows for name, rows in (self.kept or self._waiting).items()}
        if self.images is None or not images:
            return kept
        number = [classes.index(name) for name in self.images.classes]
        return {
            **{f"memory.picture.{i}": _bytes(_png(self.images.image(i))) for i in range(len(self))},
            "memory.labels": torch.tensor([number[k] for k in self.images.labels]),
            "memory.draws": torch.from_numpy(self._draws),
            "memory.digests": _bytes(b"".join(self._digests)).view(-1, 32),
            **kept,
        }

    def restore(self, tensors: Mapping[str, Tensor], classes: Sequence[str], cache_mb: int) -> None:
        """Restore the memory from `tensors`, if it has any there. Raises UserError where they do not fit."""
        own = {name: tensor for name, tensor in tensors.items() if name.startswith("memory.")}
        if not own or not self.per_class:
            return
        if all(name.startswith("memory.kept.") for name in own):
            self._waiting = {name.removeprefix("memory.kept."): tensor for name, tensor in own.items()}
            return
        n = own["memory.draws"].numel() if "memory.draws" in own else 0
        files = [f"memory.picture.{i}" for i in range(n)]
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "memory.labels": ((n,), torch.int64),
            "memory.draws": ((n,), torch.float64),
            "memory.digests": ((n, 32), torch.uint8),
        }
        kept = {name: tensor for name, tensor in own.items() if name.startswith("memory.kept.")}
        wanted |= {file: ((own[file].numel() if file in own else 0,), torch.uint8) for file in files}
        wanted |= {name: ((n, *tensor.shape[1:]), torch.float32) for name, tensor in kept.items()}
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()}
        if shapes != wanted or not all(0 <= k < len(classes) for k in own["memory.labels"].tolist()):
            raise UserError("the images of its memory are not what is expected; take a copy of it that is whole")
        source = FileSource(files, lambda file: own[file].numpy().tobytes(), "the store", cache_mb, _NO_LIMIT)
        self.images = ImageSet(source, classes, own["memory.labels"].numpy())
        self.kept = {name.removeprefix("memory.kept."): tensor for name, tensor in kept.items()}
        self._draws = own["memory.draws"].numpy()
        self._digests = [row.tobytes() for row in own["memory.digests"].numpy()]
        self._fresh = np.zeros(n, dtype=bool)


def key(name: str, digest: bytes) -> bytes:
    """What an image is known by in the memory: its class and the first 16 bytes of its digest (32 bytes)."""
    return hashlib.sha256(name.encode() + b"\0" + digest[:16]).digest()


def _digest(images: ImageSet, i: int) -> bytes:
    return key(images.classes[images.labels[i]], images.digest(i))


def _png(image_3HW: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@dataclass(frozen=True)
class Replay:
    """Images of the memory that join the batches of a stage."""

    images: ImageSet
    labels_N: Tensor
    """Class ids of the images on the device."""
    rows: int
    """Number of images replayed with each batch [R]."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """What a method kept beside them."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Places [R] of the images that join one batch, uniform; without replacement where there are enough of them."""
        n = len(self.images)
        if n >= self.rows:
            return torch.randperm(n, generator=generator)[: self.rows]
        return torch.randint(n, (self.rows,), generator=generator)
