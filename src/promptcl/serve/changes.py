"""What can be done to a learner over HTTP, each as a function of a copy of it. Exact, as the commands are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from promptcl.data import ImageSet
from promptcl.data.checked import check_images, remarks_on
from promptcl.learner import Learner
from promptcl.learner.ledger import digests_of
from promptcl.learner.records import check_names
from promptcl.learner.sifting import distinct, twins
from promptcl.serve.jobs import Job
from promptcl.serve.limits import Refused
from promptcl.serve.standing import told
from promptcl.serve.uploads import Sent, Upload, image_set

_LOOKS = 2  # at each image: to check it, and to learn it


def learn(upload: Upload, store: Path) -> Job:
    """The job that learns images, without those that were learned before; training goes on from a checkpoint there."""
    check_names(sorted({one.label for one in upload.images if one.label is not None}))
    change = partial(_learn, images=upload.images, task=upload.task, store=store)
    return Job("learn", change, looks=_LOOKS * len(upload.images))


def _learn(learner: Learner, job: Job, images: list[Sent], task: str | None, store: Path) -> dict[str, Any]:
    found, twice = distinct(image_set(images, learner.config.data.cache_mb, job.heard))
    sifted = learner.sift(found)
    said = _without_commands(sifted.elsewhere)
    known: dict[str, Any] = {"known": sifted.before, "twice": twice, "warnings": said}
    if not len(sifted.images):
        return {**known, "learned": 0, "new": [], "unchanged": True}
    return {**known, **_taken_in(learner, job, sifted.images, said, task, store)}


def _taken_in(
    learner: Learner, job: Job, images: ImageSet, said: list[str], task: str | None, store: Path | None = None
) -> dict[str, Any]:
    """Learn images that were never learned."""
    new = learner.new(images.classes)
    pairs = twins(new, learner.classes)
    said = [
        *said,
        *(f"{name!r} is spelled like {other!r}; if they are one, rename one of them" for name, other in pairs),
    ]
    record = learner.learn(images, name=task, checkpoint=store, progress=job)
    said += [*record.warnings, *remarks_on(images)]
    return {"learned": len(images), "new": new, "warnings": said, "held_out": told(record.held_out)}


def correct(upload: Upload) -> Job:
    """The job that gives images another class: those learned as another one move, all others are learned as it."""
    check_names(sorted({one.label for one in upload.images if one.label is not None}))
    return Job("correct", partial(_correct, images=upload.images), looks=_LOOKS * len(upload.images))


def _correct(learner: Learner, job: Job, images: list[Sent]) -> dict[str, Any]:
    found, twice = distinct(image_set(images, learner.config.data.cache_mb, job.heard))
    check_images(learner.as_learned(found))
    learned = learner.ledger.names(learner.classes)
    fresh = {i for i, digest in enumerate(digests_of(found)) if digest not in learned}
    done: dict[str, Any] = {"moved": 0, "known": 0, "gone": [], "twice": twice}
    for k, name in enumerate(found.classes):
        # Where an older promptcl did not note its images, the learner itself has to refuse the fresh ones.
        own = [i for i, label in enumerate(found.labels) if label == k and (i not in fresh or not learner.ledger.whole)]
        if own:
            one = learner.correct(found.select(own), name)
            done["moved"] += one.moved
            done["known"] += one.known
            done["gone"] += one.gone
    if fresh:
        left = found.select(sorted(fresh))
        present = [name for k, name in enumerate(left.classes) if (left.labels == k).any()]
        return done | _taken_in(learner, job, left.of_classes(present), [], "correction")
    return done | {"learned": 0, "new": [], "warnings": [], "unchanged": not done["moved"]}


def forget(names: list[str]) -> Job:
    """The job that forgets classes."""
    return Job("forget", lambda learner, job: _mended(learner.forget(names)))


def rename(old: str, new: str, join: bool) -> Job:
    """The job that gives a class another name; where that is a class too both become one, if `join` says so."""
    check_names([new])

    def change(learner: Learner, job: Job) -> dict[str, Any]:
        if new in learner.classes and new != old and not join:
            raise Refused(f"{new!r} is a class too; say join to make both one", 409)
        return _mended(learner.rename(old, new))

    return Job("rename", change)


def undo() -> Job:
    """The job that takes away the last task."""
    return Job("undo", lambda learner, job: _mended(learner.undo()))


def _mended(record: Any) -> dict[str, Any]:
    return {"names": record.names, "images": record.images}


def _without_commands(elsewhere: list[tuple[str, str, str]]) -> list[str]:
    """What a user of the page should know of images that were learned as another class."""
    some = ", ".join(f"{file} ({old}, now {new})" for file, old, new in elsewhere[:3])
    more = f" and {len(elsewhere) - 3} more" if len(elsewhere) > 3 else ""
    return [f"left out, being learned as another class before: {some}{more}; correct them instead"] if elsewhere else []
