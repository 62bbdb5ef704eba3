"""Calibrate probabilities: a temperature and a threshold from held-out images. N images, K classes so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from promptcl.config.schema import Section
from promptcl.data.images import ImageSet
from promptcl.errors import UserError

MISSED = 0.05
"""Share of the right answers that the threshold nevertheless calls unknown."""
FEW = 20
"""Right answers below which no threshold is drawn: a twentieth of them would be less than one."""

_MOST = 4000  # images


class Calibration(Section):
    """Temperature of a learner's probabilities, and the familiarity from which on it names a class."""

    temperature: float = Field(default=1.0, gt=0)
    """Probabilities are softmax(logits / temperature)."""
    threshold: float | None = None
    """Answers less familiar than this are `unknown`; None: none is, as too few images could be answered right.
    Familiarity is what the method calls so (`Method.familiarity`), or else the largest probability."""
    images: int = Field(default=0, ge=0)
    """Number of images that it was measured on."""

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> Calibration:
        """Read the calibration from a learner's notes. Raises UserError if they hold something else under its name."""
        try:
            found = cls.model_validate(notes.get("calibration", {}))
            if not all(map(math.isfinite, (found.temperature, found.threshold or 0.0))):
                raise ValueError("not finite")
            return found
        except ValueError as error:
            raise UserError("the notes of this learner hold no valid calibration; take a copy that is whole") from error

    def joined(self, other: Calibration) -> Calibration:
        """Combine two calibrations, weighted by their numbers of images (old images are not kept to measure again)."""
        total = self.images + other.images
        if not total:
            return self
        share = other.images / total
        log = (1 - share) * math.log(self.temperature) + share * math.log(other.temperature)
        if self.threshold is None or other.threshold is None:
            threshold = other.threshold if self.threshold is None else self.threshold
        else:
            threshold = (1 - share) * self.threshold + share * other.threshold
        return Calibration(temperature=math.exp(log), threshold=threshold, images=total)


def hold_out(images: ImageSet, share: float, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """Split into (kept, held out): of each class with at least three images `share`, but at least one, is held out."""
    if not share:
        return images, images.select([])
    order = torch.randperm(len(images), generator=generator).numpy()
    held: list[int] = []
    for label in range(len(images.classes)):
        rows = order[images.labels[order] == label]
        wanted = min(len(rows) - 1, max(1, round(len(rows) * share))) if len(rows) >= 3 else 0
        held += rows[:wanted].tolist()
    chosen = np.zeros(len(images), dtype=bool)
    chosen[held] = True
    return images.select(np.flatnonzero(~chosen)), images.select(np.flatnonzero(chosen))


def measure(logits_NK: Tensor, labels_N: Tensor, familiarity_N: Tensor | None = None) -> Calibration:
    """Find the temperature of the smallest cross-entropy (Guo et al. 2017, sec. 4.2), and the threshold that all but
    `MISSED` of the right answers pass; familiarity_N: None for the largest probability.

    With a few images that are all answered right, temperature 0 would be best: so targets are (N+1)/(N+2) for
    the true class, as in Platt (1999), and the rest is spread over the others.
    """
    count, classes = logits_NK.shape
    if classes < 2 or not count:
        return Calibration()
    logits_NK, labels_N = logits_NK.cpu().double(), labels_N.cpu()  # not every device has float64
    some = slice(None, None, -(-count // _MOST))  # a temperature is one number: some thousand images tell it
    some_SK = logits_NK[some]
    known_SK = some_SK.isfinite()  # a method may rule classes out with -inf, which no temperature moves
    floored_SK = torch.where(known_SK, some_SK, some_SK[known_SK].min() if known_SK.any() else 0.0)
    rest = 1 / (count + 2)
    target_SK = torch.full_like(some_SK, rest / (classes - 1))
    target_SK.scatter_(1, labels_N[some, None], 1 - rest)

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(floored_SK / math.exp(log_temperature), target_SK).item()

    low, high = math.log(1e-4), math.log(1e4)
    for _ in range(60):  # one minimum: the loss is convex in 1 / temperature
        third = (high - low) / 3
        low, high = (low + third, high) if loss(low + third) > loss(high - third) else (low, high - third)
    temperature = math.exp((low + high) / 2)
    probable, answers = (logits_NK / temperature).softmax(1).max(1)
    familiar = probable if familiarity_N is None else familiarity_N.cpu().double()
    right = familiar[answers == labels_N].numpy()
    threshold = float(np.quantile(right, MISSED, method="lower")) if len(right) >= FEW else None
    return Calibration(temperature=temperature, threshold=threshold, images=count)
