"""Before images are learned: which were learned already, which are there twice, which class names look alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.learner.ledger import Ledger, digests_of
from promptcl.store import TaskRecord


@dataclass(frozen=True)
class Sifted:
    """Images to learn, and what was left out of them."""

    images: ImageSet
    """Those never learned; classes of which none is left are gone."""
    before: int
    """Images left out because they were learned before as what they are now."""
    elsewhere: list[tuple[str, str, str]]
    """Images left out because they were learned as another class: file, the class then, the class now."""

    def sentences(self) -> list[str]:
        """What a user should know of the images that were learned as another class."""
        if not self.elsewhere:
            return []
        some = ", ".join(f"{file} ({old}, now {new})" for file, old, new in self.elsewhere[:3])
        more = f" and {len(self.elsewhere) - 3} more" if len(self.elsewhere) > 3 else ""
        return [
            f"left out {len(self.elsewhere)} image{'s'[: len(self.elsewhere) - 1]} learned before as another class: "
            f"{some}{more}; "
            "promptcl correct STORE IMAGE... --class NAME gives them another one"
        ]


def distinct(images: ImageSet) -> tuple[ImageSet, int]:
    """Leave out images that are there twice in one class; also returns how many.

    Raises UserError where the same image is in two classes.
    """
    first: dict[bytes, int] = {}
    for i, digest in enumerate(digests_of(images)):
        other = first.setdefault(digest, i)
        if images.labels[other] != images.labels[i]:
            images.image(i)  # error pages of a server, for one, are alike, and no images
            raise UserError(
                f"{images.name(other)} and {images.name(i)} are the same image in two classes; remove the wrong one"
            )
    twice = len(images) - len(first)
    return (images.select(list(first.values())) if twice else images), twice


def sift(images: ImageSet, ledger: Ledger, classes: Sequence[str], history: Sequence[TaskRecord]) -> Sifted:
    """Leave out what was learned before; of tasks whose images are not known, only the very same set is noticed."""
    unknown = [record for record, noted in zip(history, ledger.tasks, strict=True) if noted is None]
    if unknown and any(record.sha256 == images.sha256() for record in unknown):
        return Sifted(images.select([]), len(images), [])
    learned, before, fresh, elsewhere = ledger.names(classes), 0, [], []
    for i, digest in enumerate(digests_of(images) if learned else [b""] * len(images)):
        name = images.classes[images.labels[i]]
        if digest not in learned:
            fresh.append(i)
        elif name in learned[digest]:
            before += 1
        else:
            elsewhere.append((images.name(i), learned[digest][-1], name))
    if len(fresh) == len(images):
        return Sifted(images, 0, [])
    left = images.select(fresh)
    here = np.bincount(left.labels, minlength=len(left.classes))
    return Sifted(left.of_classes([name for name, n in zip(left.classes, here, strict=True) if n]), before, elsewhere)


def twins(new: Sequence[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of a new name and another one that differ only in case, spaces, underscores, hyphens or accents' form."""
    alike = {_plain(name): name for name in reversed(list(known))}
    found = []
    for name in new:
        other = alike.setdefault(_plain(name), name)
        if other != name:
            found.append((name, other))
    return found


def _plain(name: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_-]+", "", folded)
