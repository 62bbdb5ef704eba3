"""Rehearsal: a memory of raw images, chosen by one of four rules, and what a method keeps beside them. R replayed rows.

Rules: n of each class; a total, shared equally by the classes or by the tasks so far; a reservoir (Vitter 1985; ER and
DER); the greedy balanced sampler of GDumb (Prabhu et al., ECCV 2020).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from promptcl.data import FileSource, ImageSet, concat
from promptcl.errors import UserError

_NO_LIMIT = 2**20  # short side in pixels: stored images are small enough already, and are not resized


Rule = Literal["class", "task", "reservoir", "greedy"]


class Memory:
    """At most `per_class` images of each class, or `total` in all, of which `rule` says how they are chosen.

    Every image gets a random number when it is added, and each group (a class, a task, or all together) keeps the
    images with the smallest ones: a uniform sample of all that were ever added to it, as reservoir sampling gives it
    (an image that comes again after it was dropped counts as new). With fewer images than there is room for all are
    kept. `greedy` draws otherwise: see `_greedy`. Refers to the images; only `tensors` copies them. An image is known
    by its class and its content, since file names may repeat.
    """

    def __init__(self, per_class: int, total: int = 0, rule: Rule = "class") -> None:
        """Start empty. Room for no image where both numbers are 0; `rule` is read with `total` alone."""
        self.per_class, self.total, self.rule = per_class, total, rule
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
        self._files: dict[bytes, Tensor] = {}  # PNG files of images that were saved before, by their digests

    def __len__(self) -> int:
        """Number of images held."""
        return 0 if self.images is None else len(self.images)

    def add(self, images: ImageSet, generator: torch.Generator, task: int = 0) -> None:
        """Offer `images` of task number `task`; `generator` decides which are kept. No image is held twice."""
        if not (self.per_class or self.total) or not len(images):
            return
        held, digests = set(self._digests), [_digest(images, i) for i in range(len(images))]
        new = np.array([i for i, digest in enumerate(digests) if digest not in held], dtype=np.int64)
        more = torch.rand(len(new), generator=generator, dtype=torch.float64).numpy()
        place = {
            digest: i for i, digest in reversed([*enumerate(digests)])
        }  # of what comes twice in `images` the first
        once = np.array([place[digests[i]] == i for i in new], dtype=bool)
        new, more = new[once], more[once]
        offered, digests = images.select(new), [*self._digests, *(digests[i] for i in new)]
        if self.rule == "task":  # the whole part of a random number is its task
            more = more + task
        draws, fresh = np.concatenate([self._draws, more]), np.concatenate([self._fresh, np.ones(len(new), dtype=bool)])
        merged = offered if self.images is None else concat([self.images, offered])
        kept = (
            self._greedy(merged, len(self), generator)
            if self.rule == "greedy" and self.total
            else self._smallest(merged, draws)
        )
        self.images, self._draws, self._digests = merged.select(kept), draws[kept], [digests[i] for i in kept]
        self._fresh = fresh[kept]
        for name, rows in self.kept.items():
            padded = torch.cat([rows, rows.new_full((len(new), *rows.shape[1:]), float("nan"))])
            self.kept[name] = padded[torch.from_numpy(kept)]

    def _smallest(self, images: ImageSet, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Places of the images with the smallest random numbers of their group, as many as it has room for, in order.

        A total that the groups do not divide leaves one place more to each of the first.
        """
        group = np.asarray(images.labels)
        if self.total and self.rule in ("task", "reservoir"):
            group = np.floor(draws).astype(np.int64) if self.rule == "task" else np.zeros(len(draws), dtype=np.int64)
        draws = draws % 1
        _, group, counts = np.unique(group, return_inverse=True, return_counts=True)
        room = np.full(len(counts), self.per_class)
        if self.total:
            share, more = divmod(self.total, len(counts))
            room = share + (np.arange(len(counts)) < more)
        order = np.lexsort((draws, group))
        rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        return np.sort(order[rank < room[group[order]]])

    def _greedy(self, images: ImageSet, held: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
        """Places of the images that GDumb's sampler keeps of `held` ones and of those after them, in order.

        The new ones arrive in random order. One is kept where its class has fewer images than the total over the number
        of classes; if there is no room, a random image of the largest class goes. Nothing else is ever replaced.
        """
        labels, rows_of = images.labels.tolist(), dict[int, list[int]]()
        for row in range(held):
            rows_of.setdefault(labels[row], []).append(row)
        size = held
        for new in torch.randperm(len(images) - held, generator=generator).tolist():
            own = rows_of.setdefault(labels[held + new], [])
            if own and len(own) >= self.total / len(rows_of):
                continue
            if size == self.total:
                largest = max(rows_of.values(), key=len)
                largest.pop(int(torch.randint(len(largest), (), generator=generator)))
                size -= 1
            own.append(held + new)
            size += 1
        return np.sort(np.array([row for rows in rows_of.values() for row in rows], dtype=np.int64))

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
        kept = np.arange(len(rows)) if self.rule == "greedy" else self._smallest(images, self._draws[rows])
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
        contents = [self.images.digest(i) for i in range(len(self))]
        for i in (i for i, one in enumerate(contents) if one not in self._files):
            self._files[contents[i]] = _bytes(_png(self.images.image(i)))
        self._files = {one: self._files[one] for one in contents}
        return {
            **{f"memory.picture.{i}": self._files[one] for i, one in enumerate(contents)},
            "memory.labels": torch.tensor([number[k] for k in self.images.labels]),
            "memory.draws": torch.from_numpy(self._draws),
            "memory.digests": _bytes(b"".join(self._digests)).view(-1, 32),
            "memory.contents": _bytes(b"".join(contents)).view(-1, 32),
            **kept,
        }

    def restore(self, tensors: Mapping[str, Tensor], classes: Sequence[str], cache_mb: int) -> None:
        """Restore the memory from `tensors`, if it has any there. Raises UserError where they do not fit."""
        own = {name: tensor for name, tensor in tensors.items() if name.startswith("memory.")}
        if not own or not (self.per_class or self.total):
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
            "memory.contents": ((n, 32), torch.uint8),
        }
        if "memory.contents" not in own:  # of an older promptcl
            del wanted["memory.contents"]
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
        if "memory.contents" in own:
            contents = [row.tobytes() for row in own["memory.contents"].numpy()]
            self.images = self.images.known_as(contents)
            self._files = {one: own[file] for one, file in zip(contents, files, strict=True)}
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
    """Number of images of one draw [R]."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """What a method kept beside them."""
    draws: int = 1
    """Draws for each batch."""

    def __len__(self) -> int:
        """Number of images that join one batch."""
        return self.rows * self.draws

    def draw(self, generator: torch.Generator) -> Tensor:
        """Places of the images that join one batch, draw by draw.

        Draws are independent and uniform; each is without replacement where there are enough images.
        """
        return torch.cat([self._one(generator) for _ in range(self.draws)])

    def _one(self, generator: torch.Generator) -> Tensor:
        n = len(self.images)
        if n >= self.rows:
            return torch.randperm(n, generator=generator)[: self.rows]
        return torch.randint(n, (self.rows,), generator=generator)
