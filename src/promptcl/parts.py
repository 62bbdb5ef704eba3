"""Data in parts: several data sets, or one in several domains. Loading them, joining them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from promptcl import datasets
from promptcl.config import DataConfig
from promptcl.data import (
    ImageSet,
    Source,
    Split,
    check_classes,
    check_same_classes,
    first,
    load_split,
    ranks,
    validation,
)
from promptcl.errors import UserError


class Part(NamedTuple):
    """One data set of several, or one domain. Parts may share one test set: the same object."""

    name: str
    train: ImageSet
    test: ImageSet


def join(parts: Sequence[Part]) -> Split:
    """All parts as one; a test set that several parts share counts once."""
    tests = list({id(part.test): part.test for part in parts}.values())
    return Split(concat([part.train for part in parts]), concat(tests))


def load_parts(config: DataConfig) -> list[Part]:
    """Read the data set `config.name`, cut it to n per class (of each part), and check it.

    train_per_class and test_per_class keep the first n of each class (sorted file order, or array order), or all
    where there are fewer. With validation_per_class = n the test set is made of training images, the n that follow
    the first train_per_class of each class, or the last n (taken out of training) where train_per_class is not set;
    test_per_class then has no effect, and the test split is not read.
    Raises UserError: unknown data set, nothing there, a class without images or known to one split only.
    """
    known = [module.name for module in pkgutil.iter_modules(datasets.__path__)]
    module = importlib.import_module(f"{datasets.__name__}.{config.name}") if config.name in known else None
    if module is None or not hasattr(module, "load_parts"):
        if config.order is not None:
            raise UserError(f"data.order needs data in parts but data.name={config.name} is one; leave data.order out")
        return [Part(config.name, *load_split(config))]
    parts = []
    tests: dict[int, ImageSet] = {}
    for part in module.load_parts(config):
        try:
            train, test = _cut(Split(part.train, part.test), config)
        except UserError as error:
            raise UserError(f"'{part.name}': {error}") from error
        if config.validation_per_class is None:
            test = tests.setdefault(id(part.test), test)  # a shared test set stays one object
        parts.append(Part(part.name, train, test))
    return parts


def _cut(split: Split, config: DataConfig) -> Split:
    common = config.test_set == "common"
    # Only with a common test set may a part have nothing to learn, or nothing to test.
    if len(split.train) or not common:
        check_classes(split.train, "training")
        if config.validation_per_class is not None:
            return validation(split.train, config.train_per_class, config.validation_per_class)
    if not common:
        check_same_classes(split)
    return Split(first(split.train, config.train_per_class), first(split.test, config.test_per_class))


def ordered(names: Sequence[str], order: Sequence[str] | None, kind: str) -> list[str]:
    """`names`, or those of `order`, in its order; `kind`: what they are. Raises UserError: an unknown or double one."""
    if order is None:
        return list(names)
    for name in order:
        if name not in names:
            raise UserError(f"data.order has '{name}', which is not one of the {kind}: {', '.join(names)}")
    if not order or len(set(order)) < len(order):
        raise UserError(f"data.order={list(order)}: expected some of the {kind} ({', '.join(names)}), each once")
    return list(order)


def in_stored_order(images: ImageSet) -> Split:
    """The first 80 % of each class for training, the last 20 % for testing."""
    count_K = np.bincount(images.labels, minlength=len(images.classes))
    rank_N, size_N = ranks(images.labels, len(images.classes)), count_K[images.labels]
    train_N = rank_N * 5 < size_N * 4
    return Split(images.select(np.flatnonzero(train_N)), images.select(np.flatnonzero(~train_N)))


def concat(sets: Sequence[ImageSet]) -> ImageSet:
    """All images of `sets` in that order; classes are joined by name, in order of first appearance."""
    if len(sets) == 1:
        return sets[0]
    classes = tuple(dict.fromkeys(name for images in sets for name in images.classes))
    number = {name: k for k, name in enumerate(classes)}
    sources: dict[int, Source] = {}
    which, rows, labels = [], [], []
    for images in sets:
        source, row_N = images._source, images._rows
        inner, inner_N = [source], np.zeros(len(row_N), dtype=np.int64)
        if isinstance(source, MixedSource):  # taken apart, so that joining again and again builds no tower
            inner, inner_N, row_N = list(source.sources), source.which[row_N], source.rows[row_N]
        for one in inner:
            sources.setdefault(id(one), one)
        place = {key: i for i, key in enumerate(sources)}
        which.append(np.array([place[id(one)] for one in inner], dtype=np.int64)[inner_N])
        rows.append(row_N)
        labels.append(np.array([number[name] for name in images.classes], dtype=np.int64)[images.labels])
    mixed = MixedSource(list(sources.values()), np.concatenate(which), np.concatenate(rows))
    return ImageSet(mixed, classes, np.concatenate(labels))


class MixedSource:
    """Images picked from several sources."""

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
