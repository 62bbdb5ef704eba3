"""Data in parts: several data sets, or one in several domains. Loading them, joining them."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from promptcl.config.schema import DataConfig
from promptcl.data import datasets
from promptcl.data.decode import KINDS
from promptcl.data.images import ImageSet, concat
from promptcl.errors import UserError


class Split(NamedTuple):
    """Training and test images over the same classes."""

    train: ImageSet
    test: ImageSet


def load_split(config: DataConfig) -> Split:
    """Read the data set `config.name`, cut it to n per class, and check it.

    train_per_class and test_per_class keep the first n of each class (sorted file order, or array order), or all
    where there are fewer. With validation_per_class = n the test set is made of training images, the n that follow
    the first train_per_class of each class, or the last n (taken out of training) where train_per_class is not set;
    test_per_class then has no effect, and the test split is not read.
    Raises UserError: unknown data set, nothing there, a class without images or known to one split only.
    """
    known = [module.name for module in pkgutil.iter_modules(datasets.__path__)]
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=1, cutoff=0)[0]
        raise UserError(f"data.name={config.name} is not known; did you mean {near} (known: {', '.join(known)})?")
    split: Split = importlib.import_module(f"{datasets.__name__}.{config.name}").load(config)
    check_classes(split.train, "training")
    if config.validation_per_class is not None:
        return validation(split.train, config.train_per_class, config.validation_per_class)
    check_same_classes(split)
    return Split(first(split.train, config.train_per_class), first(split.test, config.test_per_class))


def check_classes(images: ImageSet, kind: str) -> None:
    """Raise UserError unless every class has images and a name of its own; `kind`: training or test."""
    if not len(images):
        raise UserError(f"there are no {kind} images; expected at least one for each class")
    if len(set(images.classes)) < len(images.classes):
        twice = next(name for name in images.classes if images.classes.count(name) > 1)
        raise UserError(f"the class name '{twice}' occurs twice; give each class its own name")
    counts = np.bincount(images.labels, minlength=len(images.classes))
    if not counts.all():
        raise UserError(
            f"class '{images.classes[int(counts.argmin())]}' has no {kind} images; "
            f"add a readable {KINDS}, or remove the class"
        )


def check_same_classes(split: Split) -> None:
    """Raise UserError unless both sets have images of the same classes."""
    extra = sorted(set(split.test.classes) - set(split.train.classes))
    if extra:
        raise UserError(f"class '{extra[0]}' is in test but not in train; add training images or remove it from test")
    missing = sorted(set(split.train.classes) - set(split.test.classes))
    if missing:
        raise UserError(f"class '{missing[0]}' has no test images; add some or remove it from train")
    if split.train.classes != split.test.classes:
        raise ValueError(f"the loader gives the same classes in two orders: {split.train.classes[:3]} ...")
    check_classes(split.test, "test")


def order_in_class(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """How many earlier images of the same class each image has."""
    counts = np.bincount(labels, minlength=classes)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[np.argsort(labels, kind="stable")] = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    return rank


def first(images: ImageSet, n: int | None) -> ImageSet:
    """The first n images of each class, or all."""
    if n is None:
        return images
    return images.select(np.flatnonzero(order_in_class(images.labels, len(images.classes)) < n))


def validation(images: ImageSet, train_per_class: int | None, n: int) -> Split:
    """Training images and the n of each class held out, as load_split says. Raises UserError when there are too few."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    needed = (train_per_class or 1) + n
    if counts.min() < needed:
        raise UserError(
            f"class '{images.classes[int(counts.argmin())]}' has {counts.min()} training images but "
            f"data.validation_per_class={n} needs {needed}; write a smaller number"
        )
    rank = order_in_class(images.labels, len(images.classes))
    start = counts[images.labels] - n if train_per_class is None else train_per_class
    held_out = (rank >= start) & (rank < start + n)
    return Split(images.select(np.flatnonzero(rank < start)), images.select(np.flatnonzero(held_out)))


class Domain(NamedTuple):
    """One data set of several, or one domain. Parts may share one test set: the same object."""

    name: str
    train: ImageSet
    test: ImageSet


def join(parts: Sequence[Domain]) -> Split:
    """All parts as one; a test set that several parts share counts once."""
    tests = list({id(part.test): part.test for part in parts}.values())
    return Split(concat([part.train for part in parts]), concat(tests))


def load_domains(config: DataConfig) -> list[Domain]:
    """Read the data set `config.name`, cut it to n per class (of each part), and check it.

    train_per_class and test_per_class keep the first n of each class (sorted file order, or array order), or all
    where there are fewer. With validation_per_class = n the test set is made of training images, the n that follow
    the first train_per_class of each class, or the last n (taken out of training) where train_per_class is not set;
    test_per_class then has no effect, and the test split is not read.
    Raises UserError: unknown data set, nothing there, a class without images or known to one split only.
    """
    known = [module.name for module in pkgutil.iter_modules(datasets.__path__)]
    module = importlib.import_module(f"{datasets.__name__}.{config.name}") if config.name in known else None
    if module is None or not hasattr(module, "load_domains"):
        if config.order is not None:
            raise UserError(f"data.order needs data in parts but data.name={config.name} is one; leave data.order out")
        return [Domain(config.name, *load_split(config))]
    parts = []
    tests: dict[int, ImageSet] = {}
    for part in module.load_domains(config):
        try:
            train, test = _cut(Split(part.train, part.test), config)
        except UserError as error:
            raise UserError(f"'{part.name}': {error}") from error
        if config.validation_per_class is None:
            test = tests.setdefault(id(part.test), test)  # a shared test set stays one object
        parts.append(Domain(part.name, train, test))
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
    rank_N, size_N = order_in_class(images.labels, len(images.classes)), count_K[images.labels]
    train_N = rank_N * 5 < size_N * 4
    return Split(images.select(np.flatnonzero(train_N)), images.select(np.flatnonzero(~train_N)))
