"""What is measured where no task ends: answers to images before they are learned, and accuracy at any time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from promptcl.data import ImageSet
from promptcl.experiments import metrics
from promptcl.learner.learner import Learner

Counts = Mapping[str, tuple[int, int]]
"""Of each class: images answered right, and their number."""


def answered(learner: Learner, images: ImageSet) -> list[int]:
    """How many images that are yet to be learned are answered right, and how many they are."""
    if not learner.classes:
        return [0, len(images)]
    return _total(learner.evaluate(images, unseen=True).by_class.values())


def measured(
    counts: Counts, classes: Collection[str], learned: Sequence[Any], earlier: Sequence[Any]
) -> dict[str, Any]:
    """What the record of an evaluation says besides.

    counts: answers to the one test set; classes: those that were seen; learned: what was written down of each task
    since the last evaluation, with `online` where images were answered first; earlier: records so far.
    """
    right, images = _total(found for name, found in counts.items() if name in classes)
    record: dict[str, Any] = {"seen_accuracy": 100.0 * right / images if images else None}
    if all("online" in task for task in learned):
        record["online"] = [task["online"] for task in learned]
        answers = [pair for one in (*earlier, record) for pair in one["online"]]
        record["online_accuracy"] = metrics.online_accuracy(answers)
    return record


def anytime(records: Sequence[Mapping[str, Any]]) -> float | None:
    """The anytime accuracy over all records of a run; None where one says nothing of it, as of an older promptcl."""
    points = [(record["task"] + 1, record.get("seen_accuracy")) for record in records]
    known = [(learned, accuracy) for learned, accuracy in points if accuracy is not None]
    return metrics.anytime_accuracy(known) if len(known) == len(points) else None


def _total(counts: Iterable[tuple[int, int]]) -> list[int]:
    """Add up pairs of numbers."""
    found = [0, 0]
    for right, images in counts:
        found[0] += right
        found[1] += images
    return found
