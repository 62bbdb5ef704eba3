"""The ledger: which images a learner has learned, in which order, task and class. N images in all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.store import TaskRecord

_BYTES = 16  # of an image's digest: enough to tell images apart


class Noted(NamedTuple):
    """The images of one task, in the order in which the method was given them."""

    digests: list[bytes]
    """First bytes of `ImageSet.digest` of each image."""
    labels: list[int]
    """Class ids."""


class Ledger:
    """The images of each task, so that none is learned twice unnoticed, and any can be taken away again."""

    def __init__(self) -> None:
        """Start with no task."""
        self.tasks: list[Noted | None] = []
        """None: a task that was learned before there were ledgers."""

    @property
    def whole(self) -> bool:
        """Whether the images of every task are known."""
        return None not in self.tasks

    def add(self, parts: Sequence[ImageSet], labels: Sequence[Tensor]) -> None:
        """Note a task of the images of all `parts`, one after the other, with their class ids."""
        digests = [digest for images in parts for digest in digests_of(images)]
        self.tasks.append(Noted(digests, [k for part in labels for k in part.tolist()]))

    def names(self, classes: Sequence[str]) -> dict[bytes, list[str]]:
        """The classes as which each image was learned, in order, by the first bytes of its digest."""
        found: dict[bytes, list[str]] = {}
        for digest, label in self._entries():
            one = found.setdefault(digest, [])
            if classes[label] not in one:
                one.append(classes[label])
        return found

    def _entries(self) -> Iterator[tuple[bytes, int]]:
        for noted in self.tasks:
            if noted is not None:
                yield from zip(noted.digests, noted.labels, strict=True)

    def relabel(self, labels: Sequence[Sequence[int]], kept: Sequence[bool]) -> None:
        """Give the images of each task other class ids, -1 takes one away; tasks that are not `kept` go altogether."""
        tasks: list[Noted | None] = []
        for noted, ids, stays in zip(self.tasks, labels, kept, strict=True):
            assert noted is not None
            left = [i for i, k in enumerate(ids) if k >= 0]
            if stays:
                tasks.append(Noted([noted.digests[i] for i in left], [ids[i] for i in left]))
        self.tasks = tasks

    def tensors(self) -> dict[str, Tensor]:
        """The ledger as tensors called `images.*`, one row an image; none where no image is known."""
        entries, known = list(self._entries()), [(t, one) for t, one in enumerate(self.tasks) if one is not None]
        if not entries:
            return {}
        digests = torch.frombuffer(bytearray(b"".join(digest for digest, _ in entries)), dtype=torch.uint8)
        return {
            "images.digest": digests.view(-1, _BYTES),
            "images.label": torch.tensor([label for _, label in entries]),
            "images.task": torch.tensor([t for t, one in known for _ in one.labels], dtype=torch.int32),
        }

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], classes: Sequence[str], tasks: Sequence[TaskRecord]) -> Ledger:
        """Read the ledger among `tensors`. Raises UserError where it is not that of `classes` and `tasks`."""
        own, ledger = {name: tensor for name, tensor in tensors.items() if name.startswith("images.")}, cls()
        n = len(own["images.label"]) if own.get("images.label", torch.tensor(0)).ndim else 0
        wanted = {
            "images.digest": ((n, _BYTES), torch.uint8),
            "images.label": ((n,), torch.int64),
            "images.task": ((n,), torch.int32),
        }
        if own and {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()} != wanted:
            raise _unfit()
        empty = torch.zeros(0, dtype=torch.int64)
        label_N, task_N = (own.get(name, empty).numpy() for name in ("images.label", "images.task"))
        starts = np.searchsorted(task_N, np.arange(len(tasks) + 1))
        if (np.diff(task_N) < 0).any() or starts[0] != 0 or starts[-1] != n:
            raise _unfit()
        digests = own["images.digest"].numpy() if own else np.zeros((0, _BYTES), dtype=np.uint8)
        for record, start, stop in zip(tasks, starts[:-1], starts[1:], strict=True):
            if start == stop and sum(record.images.values()):
                ledger.tasks.append(None)
                continue
            labels = label_N[start:stop].tolist()
            if not all(0 <= k < len(classes) for k in labels) or not _counted(labels, classes, record):
                raise _unfit()
            ledger.tasks.append(Noted([row.tobytes() for row in digests[start:stop]], labels))
        return ledger


def _counted(labels: Sequence[int], classes: Sequence[str], record: TaskRecord) -> bool:
    """Whether `record` counts the same images of each class."""
    counts = dict.fromkeys(record.images, 0)
    for k in labels:
        counts[classes[k]] = counts.get(classes[k], 0) + 1
    return counts == record.images


def digests_of(images: ImageSet) -> list[bytes]:
    """What each of `images` is known by in a ledger."""
    return [images.digest(i)[:_BYTES] for i in range(len(images))]


def _unfit() -> UserError:
    return UserError("its list of learned images is not that of its tasks and classes; take a copy of it that is whole")
