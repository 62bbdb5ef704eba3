"""A learner's mistakes undone: forget or rename classes, undo the last task, correct the class of images. N images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from promptcl.config.extensions import builtin_names
from promptcl.config.messages import did_you_mean
from promptcl.data import ImageSet
from promptcl.data.checked import check_images
from promptcl.data.inputs import ImagesLike, unlabelled
from promptcl.data.names import one_spelling
from promptcl.errors import UserError
from promptcl.learner.calibration import measure
from promptcl.learner.ledger import digests_of
from promptcl.learner.records import Correction, check_names
from promptcl.learner.sifting import Sifted, sift
from promptcl.learner.story import Story
from promptcl.methods._base import Method, OutOfFold, load_method
from promptcl.store import ChangeRecord, TaskRecord
from promptcl.training.memory import key


class Mending(Story):
    """Base class of Learner that changes what was learned, exactly: as if it had been learned so from the start."""

    changes: list[ChangeRecord]
    """What was changed, in order."""

    def forget(self, names: str | Sequence[str]) -> ChangeRecord:
        """Become what this learner would be had it never learned these classes.

        Raises UserError: a class it does not know; a method that has not kept what each image added.
        """
        self.check_whole()
        gone = list(dict.fromkeys(self._spelled(name) for name in names_of(names)))
        if not gone:
            raise UserError("forget was given no class; name at least one")
        self._check_known(gone)
        images = sum(record.images.get(name, 0) for record in self.history for name in gone)
        if set(gone) == set(self.classes):
            self._empty()
        else:
            self._check_mendable("forget classes")
            self._become([[None if name in gone else name for name in task] for task in self._names()], gone)
        return self._changed(ChangeRecord.of("forget", gone, images))

    def rename(self, old: str, new: str) -> ChangeRecord:
        """Give the class `old` the name `new`; where `new` is a class too, both become one.

        Raises UserError: a class it does not know, a name that cannot be; two classes to join, and a method that has
        not kept what each image added.
        """
        self.check_whole()
        old, new = self._spelled(old), one_spelling(new)
        self._check_known([old])
        check_names([new])
        if old == new:
            raise UserError(f"the class {old!r} is called so already; give it another name")
        images = sum(record.images.get(old, 0) for record in self.history)
        if new in self.classes:
            self._check_mendable("join two classes")
            self._become([[new if name == old else name for name in task] for task in self._names()], [old])
        else:
            names = {name: new if name == old else name for name in self.classes}
            fate = {key(old, digest): (new, key(new, digest)) for digest in self.ledger.names(self.classes)}
            self.memory.mend(fate, names)
            self.classes = list(names.values())
            self.history = [
                record.model_copy(update={"images": {names[name]: n for name, n in record.images.items()}})
                for record in self.history
            ]
        return self._changed(ChangeRecord.of("rename", [old, new], images))

    def undo(self) -> ChangeRecord:
        """Become what this learner was before its last task; the record names that task.

        Raises UserError: nothing was learned; a method that has not kept what each image added.
        """
        self.check_whole()
        if not self.history:
            raise UserError("this learner has learned nothing that could be undone; learn a folder of images first")
        last = self.history[-1]
        if len(self.history) == 1:
            self._empty()
        else:
            self._check_mendable("undo a task")
            *tasks, undone = self._names()
            self._become([*tasks, [None] * len(undone)])
        return self._changed(ChangeRecord.of("undo", [last.name], sum(last.images.values())))

    def correct(self, images: ImagesLike, name: str) -> Correction:
        """Make `name` the class of these images, as if they had been learned so; those never learned are learned now.

        Raises UserError: an image or a name that cannot be; images to move, and a method that has not kept what each
        added; images that may be among those of a task whose images are not known.
        """
        self.check_whole()
        name = one_spelling(name)
        check_names([name])
        images = unlabelled(images, self.config.data.cache_mb)
        learned, places = self.ledger.names(self.classes), {d: i for i, d in enumerate(digests_of(images))}
        fresh = [i for digest, i in places.items() if digest not in learned]
        wrong = {digest for digest in places if learned.get(digest, [name]) != [name]}
        if fresh and not self.ledger.whole:
            raise UserError(
                f"{images.name(fresh[0])} may have been learned by an older promptcl, which did not note images; "
                "to learn it now, give it in a folder to promptcl learn"
            )
        left = images.select(fresh).labelled([name], np.zeros(len(fresh), dtype=np.int64))
        check_images(left, data=self.config.data)  # before anything is moved
        before = Counter(other for digest in wrong for other in learned[digest] if other != name)
        gone: list[str] = []
        if wrong:
            self._check_mendable("move images to another class")
            old = list(self.classes)
            self._become(self._names(dict.fromkeys(wrong, name)))
            gone = [other for other in old if other not in self.classes]
            self._changed(ChangeRecord.of("correct", [name], len(wrong)))
        known = len(places) - len(wrong) - len(fresh)
        if not fresh:
            return Correction(name, dict(before), len(wrong), known, None, 0, gone)
        return Correction(name, dict(before), len(wrong), known, self._take_in(left, "correction"), len(fresh), gone)

    def sift(self, images: ImageSet) -> Sifted:
        """Leave out the images that were learned before."""
        return sift(images, self.ledger, self.classes, self.history)

    def _spelled(self, name: str) -> str:
        """The name of a class as this learner writes it: one of an older promptcl may have another form of accents."""
        return name if name in self.classes else one_spelling(name)

    def _names(self, moved: Mapping[bytes, str] | None = None) -> list[list[str | None]]:
        """The class of each image of each task, after those in `moved` have changed theirs."""
        moved = moved or {}
        return [
            [moved.get(d, self.classes[k]) for d, k in zip(noted.digests, noted.labels, strict=True)]
            for noted in self.ledger.tasks
            if noted is not None
        ]

    def _become(self, wanted: Sequence[Sequence[str | None]], gone: Iterable[str] = ()) -> None:
        """Become what learning the images as the classes `wanted` gives (None: not at all).

        gone: classes that vanish from a task even where it had no image of them. A task without images vanishes too.
        """
        history = [_recounted(*pair, set(gone)) for pair in zip(self.history, wanted, strict=True)]
        classes = list(dict.fromkeys(name for record in history for name in record.images))
        if not classes:
            self._empty()
            return
        number = {name: k for k, name in enumerate(classes)}
        labels = [[-1 if name is None else number[name] for name in names] for names in wanted]
        self._whole = False
        flat = torch.tensor([k for ids in labels for k in ids], dtype=torch.long, device=self.device)
        with torch.no_grad():
            self.method.mend(flat, len(classes))
        self.method.to(self.device).eval()
        self.memory.mend(self._fate(wanted), {})
        stay = [bool(record.images) for record in history]
        self.ledger.relabel(labels, stay)
        self._forget_depths(stay)
        self.history, self.classes = [record for record in history if record.images], classes
        self.notes.pop("calibration", None)  # what held-out images of before have measured
        self._recalibrate()
        self._whole = True

    def _fate(self, wanted: Sequence[Sequence[str | None]]) -> dict[bytes, tuple[str, bytes]]:
        """What the memory needs to know of each image that stays: its new class and key, by its old key."""
        fate: dict[bytes, tuple[str, bytes]] = {}
        for noted, names in zip(self.ledger.tasks, wanted, strict=True):
            assert noted is not None
            for digest, label, name in zip(noted.digests, noted.labels, names, strict=True):
                if name is not None:
                    fate[key(self.classes[label], digest)] = (name, key(name, digest))
        return fate

    def _empty(self) -> None:
        """Become a learner that has learned nothing, whatever the method."""
        self._whole = False
        self.method = self._new_method()
        self.batches.forget_queries()  # the old method's
        self.memory.clear()
        self.ledger.tasks.clear()
        self.classes, self.history, self.moments = [], [], {}
        for name in ("calibration", "depths", "depth"):
            self.notes.pop(name, None)
        self._whole = True

    def _recalibrate(self) -> dict[str, tuple[int, int]]:
        """Calibrate on all images so far, each left out in turn, and return right answers and images by class.

        Where the method cannot leave out images nothing is measured, and the calibration stays as it is.
        """
        found = self.left_out()
        if found is None:
            return {}
        self.notes["calibration"] = measure(*found).model_dump()
        right_N = found.logits_NK.argmax(1) == found.labels_N
        count_K = torch.bincount(found.labels_N, minlength=len(self.classes)).tolist()
        right_K = torch.bincount(found.labels_N[right_N], minlength=len(self.classes)).tolist()
        counts = zip(self.classes, right_K, count_K, strict=True)
        return {name: (right, count) for name, right, count in counts if count}

    def left_out(self) -> OutOfFold | None:
        """What is said of each image learned so far as if it had not been learned, in the order of learning.

        Without the only image of its class, which would not be known then. None where the method cannot leave out
        images.
        """
        if not self.classes:
            return None
        with torch.no_grad():
            found = self.method.out_of_fold()
        if found is None:
            return None
        told_N = torch.bincount(found.labels_N, minlength=len(self.classes))[found.labels_N] > 1
        return OutOfFold(*(values[told_N] for values in found))

    def _changed(self, record: ChangeRecord) -> ChangeRecord:
        self.changes.append(record)
        return record

    def _check_known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.classes:
                some = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
                hint = did_you_mean(name, self.classes) or f"; its classes are {some or 'none yet'}"
                raise UserError(f"class {name!r} was never learned{hint}")

    def _check_mendable(self, what: str) -> None:
        """Raise UserError unless images can be taken away again."""
        name = self.config.method["name"]
        if not self.method.mendable:
            can = ", ".join(mendable_methods()) or "none so far"
            raise UserError(
                f"method.name={name} has not kept what each image added, so this learner cannot {what}; methods that "
                f"can, chosen when a learner is made, with method.rows for all images: {can}"
            )
        if not self.ledger.whole:
            raise UserError(
                f"this learner cannot {what}: part of it was learned by an older promptcl, which did not note the "
                "images; learn them again in a new folder"
            )


def mendable_methods() -> list[str]:
    """Names of the methods of promptcl that can take images away again."""
    names = builtin_names("promptcl.methods")
    return [name for name in names if load_method(name).mend is not Method.mend]


def names_of(names: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    return [names] if isinstance(names, str) else list(names)


def _recounted(record: TaskRecord, names: Sequence[str | None], gone: set[str]) -> TaskRecord:
    """The record of a task whose images now have the classes `names`, sorted where they were sorted before."""
    counts = Counter(name for name in names if name is not None)
    if names and not counts:
        return record.model_copy(update={"images": {}})
    order = [name for name, n in record.images.items() if name in counts or (not n and name not in gone)]
    order += [name for name in counts if name not in record.images]
    if list(record.images) == sorted(record.images):
        order.sort()
    return record.model_copy(update={"images": {name: counts[name] for name in order}})
