"""Sets of images with class names, decoded when they are asked for and cached within a budget."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from promptcl.data.archive import MAX_FILE
from promptcl.data.files import FileSource
from promptcl.data.names import LabelsLike, joined, numbered, one_spelling
from promptcl.errors import UserError
from promptcl.runtime import disk

Indices = Sequence[int] | npt.NDArray[np.int64]


class Source(Protocol):
    """Where an ImageSet gets its pixels from."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, row: int) -> Tensor:
        """Image `row` as uint8 (3, H, W), RGB."""

    def content(self, row: int) -> bytes:
        """What image `row` is made from, to tell whether it is still the same."""

    def name(self, row: int) -> str:
        """What an error message calls image `row`."""


class ArraySource:
    """A source of images in one array, which is not copied."""

    def __init__(self, images: npt.NDArray[np.uint8], name: str) -> None:
        """images: uint8, (N, H, W) grey or (N, H, W, 3) RGB; name: what error messages call the array."""
        self._images = torch.from_numpy(images)
        self._name = name

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def read(self, row: int) -> Tensor:
        """Image `row` as uint8 (3, H, W); grey is repeated. Not to be written to."""
        image = self._images[row]
        return image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1).contiguous()

    def content(self, row: int) -> bytes:
        """The values of image `row`."""
        return self._images[row].numpy().tobytes()

    def name(self, row: int) -> str:
        """Array and row."""
        return f"{self._name}[{row}]"


class ImageSet:
    """Images, the names of their classes, and one label per image.

    Views made by `select` and `of_classes` share the images, their cache and the hashes computed so far.
    """

    def __init__(
        self, source: Source, classes: Sequence[str], labels: npt.ArrayLike, rows: npt.ArrayLike | None = None
    ) -> None:
        """labels: int64 (N,), indices into `classes`; rows: where in `source` the N images are (None: all of it).

        Names get one spelling (NFC); those of which only that differed are one class.
        """
        self._source = source
        self._rows = np.arange(len(source)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.classes, self.labels = joined(classes, labels)
        if len(self.labels) != len(self._rows):
            raise ValueError(f"{len(self._rows)} images but {len(self.labels)} labels")
        self._digests: dict[int, bytes] = {}
        self.notes: tuple[str, ...] = ()
        """What should be known of how the images were found, a sentence each: what was left out of their folder."""

    @classmethod
    def from_files(cls, paths: Sequence[str | Path], names: LabelsLike) -> ImageSet:
        """Encoded images in the files `paths`, read when needed, and the class name of each; classes are sorted."""
        source = FileSource([str(path) for path in paths], lambda path: disk.read(path, MAX_FILE))
        return cls(source, *numbered(names))

    @classmethod
    def from_arrays(cls, images: npt.NDArray[np.uint8], names: LabelsLike) -> ImageSet:
        """Images in an array, uint8 (N, H, W) or (N, H, W, 3), and the class name of each; classes are sorted."""
        return cls(ArraySource(images, "array"), *numbered(names))

    def __add__(self, other: ImageSet) -> ImageSet:
        """The images of both, classes joined by name."""
        return concat([self, other])

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def image(self, i: int) -> Tensor:
        """Image `i` as uint8 (3, H, W), RGB; not to be written to. Raises UserError when it does not decode."""
        return self._source.read(int(self._rows[i]))

    @property
    def sources(self) -> list[Source]:
        """Where the pixels come from, each source once."""
        return list(self._source.sources) if isinstance(self._source, MixedSource) else [self._source]

    def place(self, i: int) -> tuple[Source, int]:
        """The source of image `i`, and its row there."""
        row, source = int(self._rows[i]), self._source
        if isinstance(source, MixedSource):
            return source.sources[int(source.which[row])], int(source.rows[row])
        return source, row

    def images(self, indices: Indices) -> list[Tensor]:
        """The images at `indices`; their sizes may differ."""
        return [self.image(int(i)) for i in indices]

    def name(self, i: int) -> str:
        """What an error message calls image `i`: its file, or its row in the array."""
        return self._source.name(int(self._rows[i]))

    def digest(self, i: int) -> bytes:
        """SHA-256 of the stored form of image `i`, 32 bytes, read once. Raises UserError when it cannot be read."""
        row = int(self._rows[i])
        if row not in self._digests:
            self._digests[row] = hashlib.sha256(self._source.content(row)).digest()
        return self._digests[row]

    def known_as(self, digests: Sequence[bytes]) -> ImageSet:
        """The same images, each with the digest of another stored form, as of the file that it was read from."""
        view = self._view(self.classes, self.labels, self._rows)
        view._digests = dict(zip(self._rows.tolist(), digests, strict=True))
        return view

    def sha256(self) -> str:
        """SHA-256 over the class names, the labels and the stored form of every image, hexadecimal."""
        digest = hashlib.sha256(repr((self.classes, self.labels.tolist())).encode())
        for i in range(len(self)):
            digest.update(self.digest(i))
        return digest.hexdigest()

    def labelled(self, classes: Sequence[str], labels: npt.ArrayLike) -> ImageSet:
        """The same images with other labels."""
        return self._view(classes, labels, self._rows)

    def select(self, indices: Indices) -> ImageSet:
        """The images at `indices`, in that order; same classes."""
        chosen = np.asarray(indices, dtype=np.int64)
        return self._view(self.classes, self.labels[chosen], self._rows[chosen])

    def without(self, other: ImageSet) -> ImageSet:
        """The images whose content is that of none in `other`, in their present order; same classes."""
        gone = {other.digest(i) for i in range(len(other))}
        return self.select([i for i in range(len(self)) if self.digest(i) not in gone])

    def renamed(self, classes: Sequence[str]) -> ImageSet:
        """The same images with other names for the classes, one for each."""
        return self._view(classes, self.labels, self._rows)

    def of_classes(self, names: Sequence[str]) -> ImageSet:
        """The images of the classes `names`, in their present order; labels are indices into `names`.

        Raises UserError for a name that is not among `classes`.
        """
        names = [one_spelling(name) for name in names]
        numbers = {name: k for k, name in enumerate(self.classes)}
        unknown = [name for name in names if name not in numbers]
        if unknown:
            raise UserError(f"class '{unknown[0]}' is not in the data; its classes are {', '.join(self.classes)}")
        renumbered = np.full(len(self.classes), -1, dtype=np.int64)
        renumbered[[numbers[name] for name in names]] = np.arange(len(names))
        labels = renumbered[self.labels]
        chosen = np.flatnonzero(labels >= 0)
        return self._view(names, labels[chosen], self._rows[chosen])

    def _view(self, classes: Sequence[str], labels: npt.ArrayLike, rows: npt.NDArray[np.int64]) -> ImageSet:
        view = ImageSet(self._source, classes, labels, rows)
        view._digests, view.notes = self._digests, self.notes
        return view


def concat(sets: Sequence[ImageSet]) -> ImageSet:
    """Join image sets in that order; classes are matched by name, in order of first appearance."""
    if len(sets) == 1:
        return sets[0]
    classes = tuple(dict.fromkeys(name for images in sets for name in images.classes))
    number = {name: k for k, name in enumerate(classes)}
    sources: dict[int, Source] = {}
    which, rows, labels = [], [], []
    for images in sets:
        source, row_N = images._source, images._rows
        inner, inner_N = [source], np.zeros(len(row_N), dtype=np.int64)
        if isinstance(source, MixedSource):  # taken apart, so that joining again and again nests no sources
            inner, inner_N, row_N = list(source.sources), source.which[row_N], source.rows[row_N]
        for k in np.unique(inner_N).tolist():  # the others, of which no image is left, may go
            sources.setdefault(id(inner[k]), inner[k])
        place = {key: i for i, key in enumerate(sources)}
        which.append(np.array([place.get(id(one), -1) for one in inner], dtype=np.int64)[inner_N])
        rows.append(row_N)
        labels.append(np.array([number[name] for name in images.classes], dtype=np.int64)[images.labels])
    mixed = MixedSource(list(sources.values()), np.concatenate(which), np.concatenate(rows))
    joint = ImageSet(mixed, classes, np.concatenate(labels))
    known = [images._digests.get(int(row)) for images in sets for row in images._rows]
    joint._digests = {row: digest for row, digest in enumerate(known) if digest is not None}
    joint.notes = tuple(dict.fromkeys(note for images in sets for note in images.notes))
    return joint


class MixedSource:
    """A source made of rows of several others."""

    def __init__(self, sources: Sequence[Source], which: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        """Image i is row `rows[i]` of `sources[which[i]]`."""
        self.sources, self.which, self.rows = sources, which, rows

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def read(self, row: int) -> Tensor:
        """Image `row` as its source gives it."""
        return self.sources[int(self.which[row])].read(int(self.rows[row]))

    def content(self, row: int) -> bytes:
        """Image `row` as its source stores it."""
        return self.sources[int(self.which[row])].content(int(self.rows[row]))

    def name(self, row: int) -> str:
        """Image `row` as its source calls it."""
        return self.sources[int(self.which[row])].name(int(self.rows[row]))
