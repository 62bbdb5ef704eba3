"""Paths of images and of learners that are given to a command: whether they are there, and what is in them.

Imports no torch: a path that does not exist is refused at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptcl.cli.terminal import note
from promptcl.errors import UserError
from promptcl.runtime import disk

if TYPE_CHECKING:
    from promptcl.data import ImageSet

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


def check_folders(*folders: Path | None) -> None:
    """Raise UserError for a folder of classes, or an archive, that is not there; None is passed over."""
    for folder in folders:
        if folder is not None and not _exists(folder):
            raise UserError(f"{folder} does not exist; expected a folder or an archive ({' '.join(_ARCHIVES)})")


def check_store(store: Path) -> None:
    """Raise UserError where there is no learner in `store`."""
    if not _exists(store):
        raise UserError(f"{store} does not exist; expected the folder of a promptcl store")
    if store.is_dir() and not _exists(store / "learner.json"):
        inside = store / "learner"  # of a run
        instead = f"write {inside}" if _exists(inside / "learner.json") else "expected the folder of a promptcl store"
        raise UserError(f"{store} is not a promptcl store: there is no learner.json in it; {instead}")
    if store.is_dir():
        try:
            disk.check(store / "learner.json")
        except OSError as error:
            raise UserError(f"{store / 'learner.json'} cannot be read ({error.strerror})") from error


def check_images(words: Iterable[str]) -> None:
    """Raise UserError for an image, folder or archive that is not there; `-` stands for stdin, once."""
    words = list(words)
    if words.count("-") > 1:
        raise UserError("- was given twice, but stdin can be read once; leave one out")
    for word in words:
        if word != "-" and not _exists(Path(word)):
            raise UserError(f"{word}: there is no such file; expected an image, a folder of images or an archive")


def _exists(path: Path) -> bool:
    """Whether there is something; what cannot be looked at is left to whoever reads it."""
    try:
        os.stat(disk.expanded(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL byte
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG  # a setting is as long as it likes
    return True


def split_words(words: Sequence[str], is_thing: Callable[[str], bool], things: str) -> tuple[list[str], list[str]]:
    """Split arguments into things, such as images, and the KEY=VALUE settings that follow them.

    is_thing: whether a word with `=` in it is a thing. Raises UserError: no thing, one after a setting.
    """
    first = next((i for i, word in enumerate(words) if "=" in word and not is_thing(word)), len(words))
    found, settings = list(words[:first]), list(words[first:])
    if stray := next((word for word in settings if "=" not in word or is_thing(word)), None):
        raise UserError(f"{stray}: expected {things} first, then settings such as device=cpu")
    if not found:
        raise UserError(f"{settings[0] if settings else 'nothing'}: expected {things} before any settings")
    return found, settings


def images_and_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into images, folders and archives, which are there, and settings."""
    images, settings = split_words(words, lambda word: _exists(Path(word)), "one or more images, folders or archives")
    check_images(images)
    return images, settings


def gather(words: Sequence[str], cache_mb: int) -> tuple[ImageSet, list[str]]:
    """The images that the words stand for, in that order, and what to call each."""
    from promptcl.data import concat, unlabelled
    from promptcl.data.archive import MAX_FILE

    def alone(word: str) -> bool:
        return word == "-" or disk.expanded(word).is_dir() or word.lower().endswith(_ARCHIVES)

    groups: list[list[str]] = []
    for word in words:
        if groups and not alone(word) and not alone(groups[-1][0]):
            groups[-1].append(word)
        else:
            groups.append([word])
    sets, names = [], []
    for group in groups:
        given = sys.stdin.buffer.read(MAX_FILE + 1) if group == ["-"] else group[0] if alone(group[0]) else group
        if isinstance(given, bytes) and len(given) > MAX_FILE:
            raise UserError(f"predict - reads one image from stdin, at most {MAX_FILE >> 20} MiB; give a smaller one")
        if not given:
            raise UserError("predict - reads one image from stdin, which is empty; write e.g. < photo.jpg")
        images = unlabelled(given, cache_mb // len(groups))
        sets.append(said(images))
        names += ["-"] if group == ["-"] else [images.name(i) for i in range(len(images))]
    return concat(sets), names


def said(images: ImageSet) -> ImageSet:
    """Say what should be known of how the images were found, such as which files were left out, if any."""
    for sentence in images.notes:
        note(sentence)
    return images


def warn_of_twins(new: Sequence[str], known: Iterable[str], store: Path, trust: bool) -> None:
    """Warn of new classes whose names are spelled like other ones; trust: the learner needs `--trust`."""
    from promptcl.learner.sifting import twins

    for name, other in twins(new, known):
        note(
            f"the new class {name!r} is spelled like {other!r}; if they are one, promptcl rename "
            f"{'--trust ' if trust else ''}{store} {name!r} {other!r} joins them",
            kind="warning",
        )
