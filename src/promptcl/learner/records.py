"""What the functions of a learner return. N images, K classes so far."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from promptcl.data.images import ImageSet
from promptcl.errors import UserError

UNKNOWN = "unknown"


Statistics = dict[str, list[int] | float]
"""What a method counted, by name: `prompts` (choices of each prompt), `cosine` (a mean), or names of its own."""


@dataclass(frozen=True)
class LearnRecord:
    """What `Learner.learn` returns about one task."""

    images: int
    """Images seen, epochs and replayed ones counted."""
    seconds: float
    statistics: Statistics
    """What the method counted while training."""
    warnings: list[str]
    """What the user should know, a sentence each."""
    held_out: dict[str, tuple[int, int]]
    """Of each class: images answered right by a learner that has not learned them, and their number: those kept out of
    training (train.holdout), or all images so far where the method can leave out one at a time."""
    before: int = 0
    """Images left out because they were learned before (`again=False`)."""


@dataclass(frozen=True)
class Correction:
    """What `Learner.correct` returns."""

    name: str
    """The class that the images have now."""
    were: dict[str, int]
    """Of each other class as which some had been learned: how many."""
    moved: int
    """Images that had been learned as another class."""
    known: int
    """Images that had been learned as this class, of which nothing changed."""
    record: LearnRecord | None
    """What learning the others took; None where there were no others."""
    learned: int
    """How many others there were: images never learned before."""
    gone: list[str]
    """Classes that have no image any more, and so are forgotten."""


@dataclass(frozen=True)
class Evaluation:
    """What `Learner.evaluate` returns about one test set."""

    accuracy: float
    """Percent, top-1 among all classes so far, no task identity."""
    images: int
    seconds: float
    statistics: Statistics
    """What the method counted while answering."""
    by_class: dict[str, tuple[int, int]]
    """Of each class: images answered right, and their number."""
    warnings: list[str] = field(default_factory=list)
    """Why the accuracy may say little, a sentence each."""


class Prediction(NamedTuple):
    """The answer for one image."""

    label: str
    """Name of the most probable class, or UNKNOWN where the image is less familiar than the threshold."""
    probability: float
    """Probability of the most probable class."""
    top: list[tuple[str, float]]
    """The most probable classes with their probabilities, best first."""
    familiarity: float
    """How much the image looks like any of the classes, in units of the method; the largest probability where it has
    none of its own."""


def predictions(
    logits_NK: Tensor, familiarity_N: Tensor, classes: Sequence[str], top: int, known_N: Tensor
) -> list[Prediction]:
    """The `top` most probable of `classes` by softmax of the logits; UNKNOWN where `known_N` is False."""
    best = logits_NK.softmax(1).topk(max(1, min(top, len(classes))), dim=1)
    found = []
    rows = zip(best.indices.tolist(), best.values.tolist(), familiarity_N.tolist(), known_N.tolist(), strict=True)
    for ids, values, familiarity, known in rows:
        row = [(classes[k], p) for k, p in zip(ids, values, strict=True)]
        found.append(Prediction(row[0][0] if known else UNKNOWN, values[0], row, familiarity))
    return found


def answer_row(name: str, answer: Prediction | None, error: str | None) -> dict[str, Any]:
    """The JSON object of one image, as commands and servers give it: its answer, or why there is none."""
    if answer is None:
        return {"image": name, "error": error}
    top = [{"label": label, "probability": probability} for label, probability in answer.top]
    said = {"label": answer.label, "probability": answer.probability, "familiarity": answer.familiarity}
    return {"image": name, **said, "top": top}


def by_class(images: ImageSet, right_N: Tensor) -> dict[str, tuple[int, int]]:
    """Count the images of each class that were answered right, and all its images; not of a class that has none."""
    classes = len(images.classes)
    all_C = np.bincount(images.labels, minlength=classes)
    right_C = np.bincount(images.labels[right_N.cpu().numpy()], minlength=classes)
    return {name: (int(r), int(n)) for name, r, n in zip(images.classes, right_C, all_C, strict=True) if n}


def one_class(classes: Sequence[str], tested: Sequence[str]) -> list[str]:
    """What to say of an accuracy where a single class was learned or tested, a sentence or none."""
    if len(classes) == 1:
        return [f"the only class that was learned is {classes[0]!r}, so every answer is that: an accuracy says nothing"]
    if len(tested) == 1:
        return [f"all these images are of one class, {tested[0]!r}: the accuracy says nothing of the others"]
    return []


def class_ids(images: ImageSet, classes: Sequence[str], unseen: bool = False) -> Tensor:
    """Place in `classes` of the class of each image [N], on the CPU; with `unseen`, -1 for other classes.

    Raises UserError: a class of `images` that is not among them, without `unseen`.
    """
    position = _places(tuple(classes))
    unknown = [name for name in images.classes if name not in position]
    if not classes and not unseen:
        raise UserError("this learner knows no class yet; learn a folder of images first")
    if unknown and not unseen:
        known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        raise UserError(f"class {unknown[0]!r} was never learned: expected {known}; take it out, or learn it first")
    return torch.tensor([position.get(name, -1) for name in images.classes])[torch.as_tensor(images.labels)]


@functools.lru_cache(maxsize=4)
def _places(classes: tuple[str, ...]) -> dict[str, int]:
    """The place of each class; it is asked for at every evaluation, for each task one."""
    return {name: k for k, name in enumerate(classes)}


def check_names(classes: Sequence[str]) -> None:
    """Raise UserError for a name that is no printable text, or that is reserved for images of no class."""
    for name in classes:
        if name == UNKNOWN:
            raise UserError(f"the class name '{name}' is kept for images of no class; give this one another name")
        if not name.strip() or not name.isprintable():
            raise UserError(f"the class name {name!a} cannot be learned: expected printable text; rename it")
