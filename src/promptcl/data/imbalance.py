"""Make a long tail of the training images: many of some classes, few of others (as CIFAR-100-LT, arXiv 1906.07413)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from promptcl.config import Config
from promptcl.data.splits import Domain, join, order_in_class
from promptcl.data.stream import ordered_classes
from promptcl.runtime.seeding import task_generator


def kept(count: int, place: int, classes: int, imbalance: float) -> int:
    """How many of its `count` images a class keeps, the `place`-th largest (from 0) of `classes`.

    count * imbalance^(-place / (classes - 1)) without its fraction, and one at least.
    """
    return max(1, int(count * imbalance ** (-place / max(1, classes - 1)) + 1e-9))


def long_tailed(domains: Sequence[Domain], config: Config) -> list[Domain]:
    """`domains` with the first images of each class only, as many as `data.imbalance` leaves it of its own.

    Test images stay all. Which classes keep many is drawn by the seed, or (`imbalance_order: ordered`) falls in the
    order in which classes are learned; of a class that is in several domains each one keeps the same share.
    """
    whole, imbalance = join(domains).train, config.data.imbalance or 1.0
    order = ordered_classes(whole.classes, config.data.class_order, config.seed)
    if config.data.imbalance_order == "shuffled":
        generator = task_generator(config.seed, 0, "imbalance")
        order = tuple(order[k] for k in torch.randperm(len(order), generator=generator).tolist())
    place = {name: k for k, name in enumerate(order)}
    found = []
    for domain in domains:
        images = domain.train
        counts = np.bincount(images.labels, minlength=len(images.classes)).tolist()
        pairs = zip(images.classes, counts, strict=True)
        most_K = np.array([kept(count, place[name], len(order), imbalance) for name, count in pairs], dtype=np.int64)
        keep_N = order_in_class(images.labels, len(images.classes)) < most_K[images.labels]
        found.append(domain._replace(train=images.select(np.flatnonzero(keep_N))))
    return found
