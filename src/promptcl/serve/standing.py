"""How well a learner answers images left out of what it learned, and what a server tells of it. K classes, N images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from promptcl.learner import Learner

Counts = Mapping[str, tuple[int, int]]
"""Of each class: images answered right, and their number."""
_MOST = 100  # tasks and changes that are told, the last ones


@dataclass(frozen=True)
class Standing:
    """The answers to all images learned so far, each left out of what answers it."""

    by_class: Counts
    confused: dict[str, tuple[str, int]]
    """Of each class with wrong answers: the most frequent one of them, and how often it was given."""

    @property
    def right(self) -> int:
        """Images answered right."""
        return sum(right for right, _ in self.by_class.values())

    @property
    def images(self) -> int:
        """Images that were answered."""
        return sum(count for _, count in self.by_class.values())


@dataclass(frozen=True)
class Known:
    """A learner as it was saved, which nothing changes any more, and how well it stands."""

    learner: Learner
    standing: Standing | None
    """None where the method cannot leave out images, or nothing was learned."""

    @classmethod
    def of(cls, learner: Learner) -> Known:
        """Measure a learner that was loaded just now."""
        return cls(learner, standing(learner))

    @property
    def version(self) -> str:
        """What tells this learner from others: the checksum of its store."""
        return self.learner.ancestors[-1]


def standing(learner: Learner) -> Standing | None:
    """Measure a learner on the images it learned; None where it cannot be measured."""
    found = learner.left_out()
    if found is None or not len(found.labels_N):
        return None
    labels_N, answers_N = found.labels_N.cpu(), found.logits_NK.argmax(1).cpu()
    classes = len(learner.classes)
    table_KK = torch.bincount(labels_N * classes + answers_N, minlength=classes**2).view(classes, classes)
    count_K, right_K = table_KK.sum(1), table_KK.diagonal().clone()
    wrong = table_KK.clone().fill_diagonal_(0).max(1)
    rows = zip(learner.classes, right_K.tolist(), count_K.tolist(), strict=True)
    pairs = zip(learner.classes, wrong.indices.tolist(), wrong.values.tolist(), strict=True)
    return Standing(
        {name: (right, count) for name, right, count in rows if count},
        {name: (learner.classes[other], often) for name, other, often in pairs if often},
    )


def told(counts: Counts) -> list[dict[str, Any]]:
    """Counts of each class as JSON."""
    return [{"name": name, "right": right, "images": images} for name, (right, images) in counts.items()]


def about(known: Known, store: Path) -> dict[str, Any]:
    """What a server tells of its learner, as JSON."""
    learner, found = known.learner, known.standing
    counts = learner.image_counts()
    return {
        "name": store.resolve().name,
        "version": known.version,
        "method": learner.config.method["name"],
        "backbone": learner.backbone.describe()["name"],
        "classes": [_class(name, counts[name], found) for name in learner.classes],
        "images": sum(counts.values()),
        "left_out": None if found is None else {"right": found.right, "images": found.images},
        "unknown_below": learner.calibration.threshold,
        "can_mend": learner.method.mendable and learner.ledger.whole,
        "tasks": [task.model_dump(mode="json", exclude={"sha256"}) for task in learner.history[-_MOST:]],
        "tasks_in_all": len(learner.history),
        "changes": [change.model_dump(mode="json") for change in learner.changes[-_MOST:]],
    }


def _class(name: str, images: int, found: Standing | None) -> dict[str, Any]:
    right, count = found.by_class.get(name, (0, 0)) if found is not None else (0, 0)
    other = found.confused.get(name) if found is not None else None
    return {
        "name": name,
        "images": images,
        "left_out": {"right": right, "images": count} if count else None,
        "confused_with": None if other is None else {"name": other[0], "images": other[1]},
    }
