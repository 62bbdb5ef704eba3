"""Decode all images of a set before anything is learned of them: what is bad is said at once, all of it."""

from __future__ import annotations

from collections.abc import Sequence

from promptcl.data.images import FileSource, ImageSet
from promptcl.errors import UserError
from promptcl.runtime import processes


class BadImages(UserError):
    """Raised for images that do not decode."""

    def __init__(self, sentences: Sequence[str]) -> None:
        """sentences: one for each image."""
        super().__init__(sentences[0] if len(sentences) == 1 else f"{len(sentences)} images: {'; '.join(sentences)}")
        self.sentences = list(sentences)


def check_images(*sets: ImageSet) -> None:
    """Decode each image once, those in files that were not decoded before; what fits into the cache stays there.

    Several processes share the work, so all of them have to call this with the same sets.
    Raises BadImages, which names every image that does not decode.
    """
    files = {id(source): source for images in sets for source in images.sources if isinstance(source, FileSource)}
    if not files:
        return
    found = {(id(source), row): None for images in sets for source, row in map(images.place, range(len(images)))}
    todo = [(key, row) for key, row in found if key in files and row not in files[key].sound]
    bad = []
    for key, row in todo[processes.rank() :: processes.size()]:
        try:
            files[key].read(row)
        except UserError as error:
            bad.append(str(error))
    bad = [sentence for one in processes.everyones(bad) for sentence in one]
    if bad:
        raise BadImages(bad)
    for key, row in todo:
        files[key].sound.add(row)


def assume_depth(images: ImageSet, bits: int | None, at_least: bool = False) -> None:
    """Take images that hold more than 8 bits, and do not say how many, for so deep; None: for what they are together.

    With `at_least` for what they are together, if that is more.
    """
    for source in images.sources if bits is not None else []:
        if bits is not None and hasattr(source, "assume"):
            source.assume(bits, at_least)


def depth_of(images: ImageSet) -> int | None:
    """The depth that images were taken for that hold more than 8 bits and do not say how many; None: none does."""
    found = [source.depth.bits for source in images.sources if hasattr(source, "depth")]
    return max((bits for bits in found if bits is not None), default=None)


def remarks_on(*sets: ImageSet) -> list[str]:
    """Sentences about images that were decoded although something is wrong with them, and how many there are."""
    files = {id(source): source for images in sets for source in images.sources if isinstance(source, FileSource)}
    found = [text for source in files.values() for _, text in sorted(source.remarks.items())]
    more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
    return [f"{found[0]}{more}"] if found else []
