"""Decode all images of a set before anything is learned of them: what is bad is said at once, all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from promptcl.config import DataConfig
from promptcl.data.ahead import Ahead, Place
from promptcl.data.files import FileSource
from promptcl.data.images import ImageSet
from promptcl.data.shrunken import shared
from promptcl.errors import UserError
from promptcl.runtime import disk, processes

_TOGETHER = 32  # images that are asked for at a time


class BadImages(UserError):
    """Raised for images that do not decode."""

    def __init__(self, sentences: Sequence[str]) -> None:
        """sentences: one for each image."""
        super().__init__(sentences[0] if len(sentences) == 1 else f"{len(sentences)} images: {'; '.join(sentences)}")
        self.sentences = list(sentences)


def check_images(
    *sets: ImageSet, data: DataConfig | None = None, tell: Callable[[int, int], None] = lambda done, of: None
) -> None:
    """Decode each image once, those in files that were not decoded before; what fits into the caches stays there.

    data: how many workers decode, and what is kept on disk; tell: called again and again with how many images are
    read, and of how many. Several processes share the work, so all of them have to call this with the same sets.
    Raises BadImages, which names every image that does not decode.
    """
    data = data or DataConfig()
    files = {id(source): source for images in sets for source in images.sources if isinstance(source, FileSource)}
    if not files:
        return
    if data.disk_mb:
        folder = disk.expanded(data.disk_root or "~/.cache/promptcl/shrunken")
        for source in files.values():
            source.shrunken = shared(folder, data.disk_mb * 2**20)
    found = {(id(source), row): None for images in sets for source, row in map(images.place, range(len(images)))}
    todo = [(files[key], row) for key, row in found if key in files and not files[key].sound[row]]
    mine = _unsound(todo[processes.rank() :: processes.size()], Ahead(data.workers), tell)
    bad = [sentence for one in processes.everyones(list(mine.values())) for sentence in one]
    if bad:
        raise BadImages(bad)
    for source, row in todo:
        source.sound[row] = True


def _unsound(
    places: Sequence[Place],
    ahead: Ahead,
    tell: Callable[[int, int], None],
    held: Callable[[int], None] = lambda count: None,
) -> dict[int, str]:
    """Read the image at each place; numbers of those that do not decode, with the sentences that say why."""
    bad: dict[int, str] = {}
    together = _TOGETHER if ahead.workers else 1  # without workers nothing is won by holding several
    try:
        for start in range(0, len(places), together):
            tell(start, len(places))
            ahead.expect("all", places[start : start + 2 * together])
            for i, one in enumerate(ahead.each(places[start : start + together]), start):
                if isinstance(one, UserError):
                    bad[i] = str(one)
                else:
                    held(one.nbytes)
    finally:
        tell(len(places), len(places))
    return bad


def unreadable(images: ImageSet, data: DataConfig, held: Callable[[int], None] = lambda count: None) -> dict[int, str]:
    """Number of each image that does not decode, and the sentence that says why.

    held: called with the bytes of the pixels of each one that does, and may raise; with `data.workers` 0 it is called
    before the next one is read.
    """
    places = [images.place(i) for i in range(len(images))]
    return _unsound(places, Ahead(data.workers), lambda done, of: None, held)


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
    full = {source.shrunken.trouble for source in files.values() if source.shrunken is not None}
    return [*([f"{found[0]}{more}"] if found else []), *sorted(text for text in full if text)]
