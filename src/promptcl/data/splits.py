"""Load a data set, in one or several domains, and cut it into training, validation and test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from promptcl.config import DataConfig
from promptcl.config.extensions import load_module
from promptcl.config.reading import Watched
from promptcl.data import datasets
from promptcl.data.images import ImageSet, concat
from promptcl.data.kinds import KINDS
from promptcl.data.names import one_spelling
from promptcl.errors import UserError


class Split(NamedTuple):
    """Training and test images of the same classes."""

    train: ImageSet
    test: ImageSet


class Domain(NamedTuple):
    """One data set of several, or one domain. Domains may share one test set: the same object."""

    name: str
    train: ImageSet
    test: ImageSet


def load_split(config: DataConfig) -> Split:
    """Read the data set `config.name` as one training and one test set: its domains, as of `load_domains`, joined."""
    return join(load_domains(config))


def load_domains(config: DataConfig) -> list[Domain]:
    """Read the data set `config.name`, cut it to n images per class (of each domain), and check it.

    A data set without domains is a single one, called `config.name`. The name is one of promptcl's, or a module
    outside it, whose code runs: NAME.py in the current folder, or a dotted name.
    train_per_class and test_per_class keep the first n of each class (sorted file order, or array order), or all
    where there are fewer. With validation_per_class = n the test set is made of training images, the n that follow
    the first train_per_class of each class, or the last n (taken out of training) where train_per_class is not set;
    test_per_class then has no effect, and the test split is not read.
    Raises UserError: unknown data set, nothing there, a class without images or known to one split only.
    """
    module = load_module("data", datasets.__name__, config.name)
    several = hasattr(module, "load_domains")
    if not several and config.order is not None:
        raise UserError(
            f"data.order needs several domains or data sets but data.name={config.name} is one; leave data.order out"
        )
    seen = Watched.of(config)
    found: list[Domain] = module.load_domains(seen) if several else [Domain(config.name, *module.load(seen))]
    seen.check()
    domains = []
    tests: dict[int, ImageSet] = {}
    for domain in found:
        try:
            train, test = _cut(Split(domain.train, domain.test), config, several and config.test_set == "common")
        except UserError as error:
            raise UserError(f"'{domain.name}': {error}" if several else str(error)) from error
        if config.validation_per_class is None:
            test = tests.setdefault(id(domain.test), test)  # a shared test set stays one object
        domains.append(Domain(domain.name, train, test))
    return domains


def _cut(split: Split, config: DataConfig, common: bool) -> Split:
    """One domain with n images per class, checked; only with a common test set may it have no training images."""
    if len(split.train) or not common:
        check_classes(split.train, "training")
        if config.validation_per_class is not None:
            return validation(split.train, config.train_per_class, config.validation_per_class)
    if not common:
        check_same_classes(split)
    return Split(first(split.train, config.train_per_class), first(split.test, config.test_per_class))


def join(domains: Sequence[Domain]) -> Split:
    """All domains as one; a test set that several of them share counts once."""
    tests = list({id(domain.test): domain.test for domain in domains}.values())
    return Split(concat([domain.train for domain in domains]), concat(tests))


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
        raise UserError(
            f"data has the same classes in two orders, {', '.join(split.train.classes[:3])} ... in training and "
            f"{', '.join(split.test.classes[:3])} ... in test; let its loader give both the same list"
        )
    check_classes(split.test, "test")


def order_in_class(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """How many images of the same class come before each image, int64 (N,)."""
    counts = np.bincount(labels, minlength=classes)
    order_N = np.empty(len(labels), dtype=np.int64)
    order_N[np.argsort(labels, kind="stable")] = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    return order_N


def first(images: ImageSet, n: int | None) -> ImageSet:
    """Keep the first n images of each class; all where a class has fewer, or n is None."""
    if n is None:
        return images
    return images.select(np.flatnonzero(order_in_class(images.labels, len(images.classes)) < n))


def validation(images: ImageSet, train_per_class: int | None, n: int) -> Split:
    """Split training images into those to learn and n of each class held out, as `load_domains` says.

    Raises UserError when a class has too few.
    """
    counts = np.bincount(images.labels, minlength=len(images.classes))
    needed = (train_per_class or 1) + n
    if counts.min() < needed:
        raise UserError(
            f"class '{images.classes[int(counts.argmin())]}' has {counts.min()} training images but "
            f"data.validation_per_class={n} needs {needed}; write a smaller number"
        )
    order_N = order_in_class(images.labels, len(images.classes))
    start = counts[images.labels] - n if train_per_class is None else train_per_class
    held_out = (order_N >= start) & (order_N < start + n)
    return Split(images.select(np.flatnonzero(order_N < start)), images.select(np.flatnonzero(held_out)))


def ordered(names: Sequence[str], order: Sequence[str] | None, kind: str) -> list[str]:
    """`names`, or those of them in `order`, in its order; `kind` is what they are called in a message.

    Raises UserError: a name that is unknown or given twice.
    """
    if order is None:
        return list(names)
    order = [one_spelling(name) for name in order]
    for name in order:
        if name not in names:
            raise UserError(f"data.order has '{name}', which is not one of the {kind}: {', '.join(names)}")
    if not order or len(set(order)) < len(order):
        raise UserError(f"data.order={list(order)}: expected some of the {kind} ({', '.join(names)}), each once")
    return list(order)


def in_stored_order(images: ImageSet) -> Split:
    """Split the images: the first 80 % of each class are for training, the last 20 % for testing."""
    count_K = np.bincount(images.labels, minlength=len(images.classes))
    order_N, size_N = order_in_class(images.labels, len(images.classes)), count_K[images.labels]
    train_N = order_N * 5 < size_N * 4
    return Split(images.select(np.flatnonzero(train_N)), images.select(np.flatnonzero(~train_N)))
