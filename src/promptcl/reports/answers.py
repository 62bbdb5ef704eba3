"""Answers of a learner to images of which the class is known, and what can be counted in them. Imports no torch.

N images, K classes that the learner knows, C >= K classes of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
BINS = 10
"""Steps of probability in the reliability curve."""


class Images(Protocol):
    """What thumbnails are made from, such as an ImageSet."""

    def image(self, i: int) -> Any:
        """Image `i` as uint8 (3, H, W), RGB."""

    def name(self, i: int) -> str:
        """Its file, or another name."""


class Pair(NamedTuple):
    """A class that was mistaken for another one."""

    true: str
    answer: str
    images: int
    of: int
    """All images of the true class."""


class Bin(NamedTuple):
    """The answers whose probability lies in one step."""

    images: int
    probability: float
    """Their mean probability, in percent."""
    right: float
    """Share of them that is right, in percent."""


@dataclass(frozen=True)
class Answers:
    """Probabilities that a learner gave to images, and the classes that these images have."""

    source: str
    """What was measured, as a page calls it: `the images in FOLDER`."""
    names: Sequence[str]
    """Class names [C]: the K that the learner knows in its order, then those it never learned."""
    labels: Ints
    """Class of each image [N], a place in `names`."""
    probabilities: Floats
    """Calibrated probability of each class the learner knows [N, K]."""
    familiarity: Floats
    """How much each image looks like one of the learned classes [N], in the learner's own units."""
    threshold: float | None
    """Images less familiar than this are `unknown`; None: none is."""
    images: Images | None = None
    """The N images, where they are at hand."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit. Raises ValueError."""
        count, classes = self.probabilities.shape
        rows = (len(self.labels), len(self.familiarity))
        if not count or rows != (count, count) or not 0 < classes <= len(self.names):
            raise ValueError(f"labels and familiarity of {rows} images, {self.probabilities.shape} probabilities")
        if self.labels.min() < 0 or self.labels.max() >= len(self.names):
            raise ValueError("a label is no place among the names")

    @cached_property
    def answer(self) -> Ints:
        """The most probable class of each image [N]."""
        found: Ints = self.probabilities.argmax(axis=1)
        return found

    @cached_property
    def probability(self) -> Floats:
        """The probability of that class [N]."""
        found: Floats = self.probabilities.max(axis=1)
        return found

    @cached_property
    def known(self) -> Bools:
        """Whether the image is of a class that was learned [N]."""
        found: Bools = self.labels < self.probabilities.shape[1]
        return found

    @cached_property
    def right(self) -> Bools:
        """Whether the most probable class is the right one [N]."""
        found: Bools = self.answer == self.labels
        return found

    @cached_property
    def unknown(self) -> Bools:
        """Whether the answer is `unknown` [N]."""
        found: Bools = self.familiarity < (-np.inf if self.threshold is None else self.threshold)
        return found

    @property
    def accuracy(self) -> float | None:
        """Percent of the images of learned classes whose most probable class is right; None without such images."""
        return 100 * float(self.right[self.known].mean()) if self.known.any() else None

    def confusion(self) -> Ints:
        """Count the images by class and most probable class, [C, K]."""
        found = np.zeros((len(self.names), self.probabilities.shape[1]), dtype=np.int64)
        np.add.at(found, (self.labels, self.answer), 1)
        return found

    def by_class(self) -> list[tuple[str, int, int, int]]:
        """Of each class with images: its name, images answered right, called `unknown`, and all."""
        classes = len(self.names)
        all_C = np.bincount(self.labels, minlength=classes)
        right_C = np.bincount(self.labels[self.right], minlength=classes)
        unknown_C = np.bincount(self.labels[self.unknown], minlength=classes)
        rows = zip(self.names, right_C, unknown_C, all_C, strict=True)
        return [(name, int(right), int(unknown), int(n)) for name, right, unknown, n in rows if n]

    def pairs(self) -> list[Pair]:
        """The mistakes between learned classes, the most frequent first."""
        confusion, classes = self.confusion(), self.probabilities.shape[1]
        wrong = confusion[:classes].copy()
        np.fill_diagonal(wrong, 0)
        found = [
            Pair(self.names[i], self.names[j], int(wrong[i, j]), int(confusion[i].sum()))
            for i, j in np.argwhere(wrong).tolist()
        ]
        return sorted(found, key=lambda pair: (-pair.images, pair.of))

    def reliability(self) -> list[Bin]:
        """How often answers to images of learned classes are right, by probability; empty steps are left out."""
        probability, right = self.probability[self.known], self.right[self.known]
        step_N = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
        found = []
        for step in range(BINS):
            chosen = step_N == step
            if chosen.any():
                values = 100 * float(probability[chosen].mean()), 100 * float(right[chosen].mean())
                found.append(Bin(int(chosen.sum()), *values))
        return found

    def kinds(self) -> dict[str, Bools]:
        """Which images were answered right, answered wrong, and are of classes never learned; empty kinds left out."""
        found = {
            "right answers": self.known & self.right,
            "wrong answers": self.known & ~self.right,
            "never learned": ~self.known,
        }
        return {name: kind for name, kind in found.items() if kind.any()}

    def shares_unknown(self) -> list[tuple[str, int, int]]:
        """Of each of the `kinds`: how many are `unknown`, and of how many."""
        return [(name, int(self.unknown[kind].sum()), int(kind.sum())) for name, kind in self.kinds().items()]

    def shown(self, most: int) -> dict[str, list[int]]:
        """Numbers of at most `most` images worth a look, each once: surely wrong, called unknown, least sure."""
        order, familiar = (np.argsort(values, kind="stable") for values in (self.probability, self.familiarity))
        wrong = [i for i in order[::-1].tolist() if self.known[i] and not self.right[i] and not self.unknown[i]]
        passed = [i for i in familiar[::-1].tolist() if not self.known[i] and not self.unknown[i]]
        unknown = [i for i in familiar.tolist() if self.unknown[i]]
        unsure = [i for i in order.tolist() if self.known[i] and self.right[i] and not self.unknown[i]]
        found = {"wrong": wrong, "passed": passed, "unknown": unknown, "unsure": unsure}
        room = {name: min(len(rows), most // 4) for name, rows in found.items()}
        for name, rows in found.items():  # what one kind leaves, the next ones fill
            room[name] = min(len(rows), room[name] + most - sum(room.values()))
        return {name: rows[: room[name]] for name, rows in found.items()}


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error in points: how far probability and share of right answers are apart, by image."""
    return sum(one.images * abs(one.probability - one.right) for one in bins) / sum(one.images for one in bins)
