"""Tell the levels of a folder apart: wrappers, the folders of a split (train, test, ...), classes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from promptcl.data.kinds import is_image

_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
    "val": ("val", "valid", "validation", "validate", "dev", "crossval"),
}
SPLITS = {word: split for split, words in _WORDS.items() for word in words}
"""Words for a split, each with what it is: train, test or val."""
_FILLERS = {"set", "split", "data", "dataset", "image", "img", "photo", "sample", "folder", "class", "seg", "the", "my"}
_FILLERS |= {"full", "all", "raw", "copy", "resized", "cropped", "original", "orig", "jpg", "jpeg", "png", "rgb"}
_PICS = ("", "s", "ture", "tures")


def _tokens(name: str) -> list[str]:
    """The words of a name in small letters: at spaces, signs and digits, and before capitals (`trainSet`)."""
    return [word.lower() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])", name)]


def filler(name: str) -> bool:
    """Whether a name says nothing of what is inside, such as `images`, `Data set` or `imgs_224`."""
    words = _tokens(name)
    return bool(words) and all(_fills(word) for word in words)


def _fills(word: str) -> bool:
    return (
        word in _FILLERS
        or word.removesuffix("s") in _FILLERS
        or word == "classes"
        or (word[:3] == "pic" and word[3:] in _PICS)
    )


def _read(name: str) -> tuple[str, str]:
    """What split a name speaks of (train, test, val or empty), and the words that say something else."""
    split, rest = "", []
    for word in _tokens(name):
        if word in SPLITS:
            split = split or SPLITS[word]
        elif glued := next((w for w in sorted(SPLITS, key=len, reverse=True) if _glued(word, w)), ""):
            split = split or SPLITS[glued]
        elif not _fills(word):
            rest.append(word)
    return split, " ".join(rest)


def _glued(word: str, split: str) -> bool:
    """Whether a word is one for a split with a filler at its end, as in `trainset`."""
    return word.startswith(split) and _fills(word[len(split) :] or "-")


def split_of(name: str) -> str:
    """The split that a folder is by its name alone, in any case and with words around it: train, test, val or empty.

    `seg_train`, `Training`, `train_images`, `Test set` and `VALID` are splits; `test tube` is none.
    """
    split, rest = _read(name)
    return "" if rest else split


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Those of the names beside each other that are splits, each with what it is.

    Beside those of `split_of`, names that differ in the word of the split only: `fruits_train` and `fruits_test`.
    """
    read = {name: _read(name) for name in names}
    pairs: dict[str, set[str]] = {}
    for split, rest in read.values():
        if split:
            pairs.setdefault(rest, set()).add(split)
    return {name: split for name, (split, rest) in read.items() if split and (not rest or len(pairs[rest]) > 1)}


class Level:
    """What lies directly in one folder of a tree."""

    def __init__(self, paths: Iterable[str], folder: str = "") -> None:
        """paths: all in this folder, those of folders end in `/`; folder: empty for the top, else `a/b/`."""
        self.folder = folder
        self.folders: dict[str, list[str]] = {}
        """What lies in each folder, by its name."""
        self.below: dict[str, list[str]] = {}
        """Images at any depth below each folder, by its name; folders without images are missing."""
        self.files: list[str] = []
        """Files that lie directly in this folder."""
        for path in paths:
            name, slash, _ = path[len(folder) :].partition("/")
            if slash:
                self.folders.setdefault(name, []).append(path)
                if is_image(path):
                    self.below.setdefault(name, []).append(path)
            elif name:
                self.files.append(path)
        self.direct = [path for path in self.files if is_image(path)]
        """Images that lie directly in this folder."""

    def inside(self, name: str) -> Level:
        """The level of one of the folders."""
        return Level(self.folders[name], f"{self.folder}{name}/")

    def splits(self) -> dict[str, str]:
        """The folders that are splits and no classes, each with what it is, empty where they may be classes.

        They are where all folders are called like splits, where two are called like different ones, and where one that
        is has no image directly in it but several folders with images.
        """
        found = splits_among(self.below)
        if not found or found.keys() == self.below.keys() or len(set(found.values())) > 1:
            return found
        levels = [self.inside(name) for name in found]
        return found if any(not level.direct and len(level.below) > 1 for level in levels) else {}


def opened(level: Level, top: str | None = None) -> Level:
    """The level of the classes: folders that wrap a single folder and nothing else are opened.

    A folder with images directly in it is a class, and so is one around a single folder of images that is called
    `images` or the like. top: what the folder around everything is called, where a split in it is not to be opened
    unless it is in a folder of the same split; None: it is opened.
    """
    while len(level.folders) == len(level.below) == 1 and not level.direct:
        name = next(iter(level.below))
        inner, outer = level.inside(name), level.folder.split("/")[-2] if level.folder else top
        if inner.direct or plain_images(inner):
            break
        if top is not None and split_of(name) not in ("", split_of(outer or "")):
            break
        level = inner
    return level


def plain_images(level: Level) -> bool:
    """Whether all images of this level lie in one folder that is called `images` or the like."""
    name = next(iter(level.below), "")
    return len(level.below) == 1 and filler(name) and bool(level.inside(name).direct)
