"""Names of classes: one spelling for each, from labels of any type, and from the bytes that an archive holds."""

from __future__ import annotations

import math
import numbers
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from promptcl.errors import UserError

LabelsLike: TypeAlias = "Iterable[str | int | np.generic | Tensor] | npt.NDArray[Any] | Tensor"
"""A class for each image: its name, or a whole number, plain or of numpy or torch."""
_ENCODINGS = {
    "zip": ("cp437", "cp850", "cp1252", "cp866", "cp1251", "cp932", "gbk", "big5", "euc_kr"),
    "tar": ("cp1252", "cp437", "cp850", "cp866", "cp1251", "cp932", "gbk", "big5", "euc_kr"),
}
_MARKS = frozenset("\u2018\u2019\u201c\u201d\u2013\u2014")  # quotation marks and dashes


def one_spelling(name: str) -> str:
    """Give names that look the same one spelling: macOS writes an accent in file names as a letter of its own."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def joined(classes: Iterable[str], labels: npt.ArrayLike) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Classes in one spelling, those that differ in nothing else as one, and the labels, int64 (N,), that then fit."""
    given, labels_N = tuple(classes), np.asarray(labels, dtype=np.int64).reshape(-1)
    plain = tuple(one_spelling(name) for name in given)
    if plain == given or len(set(plain)) == len(set(given)):
        return plain, labels_N
    distinct = tuple(dict.fromkeys(plain))
    place = np.array([distinct.index(name) for name in plain], dtype=np.int64)
    return distinct, place[labels_N]


def class_names(labels: LabelsLike) -> list[str]:
    """The class name that each label stands for; whole numbers are called by their digits.

    Raises UserError: one text for all, labels without an order, a row, None, NaN, a fraction, or nothing as a label.
    """
    if isinstance(labels, str | bytes):
        raise UserError(f"labels={labels!r} is one text; give a list with one class name for each image")
    if isinstance(labels, Mapping | Set) or not isinstance(labels, Iterable):
        raise UserError(
            f"labels is a {type(labels).__name__}; give a list with one class name for each image, in their order"
        )
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        what = "labels.reshape(-1)" if labels.ndim == 2 and labels.shape[1] == 1 else "labels.argmax(1)"
        raise UserError(
            f"labels has the shape {labels.shape}; expected one class for each image: write {what}, or the names"
        )
    return [_class_name(label, row) for row, label in enumerate(labels)]


def numbered(labels: LabelsLike) -> tuple[list[str], list[int]]:
    """The classes that labels of any type stand for, sorted, and the place of each label among them."""
    names = class_names(labels)
    classes = sorted(set(names))
    place = {name: k for k, name in enumerate(classes)}
    return classes, [place[name] for name in names]


def _class_name(label: Any, row: int) -> str:
    """The class name that one label stands for; `row` is its place, for the message of a UserError."""
    given = label
    if isinstance(label, Tensor | np.ndarray):
        label = label.detach().cpu().numpy() if isinstance(label, Tensor) else label
        label = label.item() if label.ndim == 0 else label.tolist()
    elif isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, bytes):
        label = label.decode("utf-8", "backslashreplace")
    if isinstance(label, str):
        if not label.strip():
            raise UserError(f"labels[{row}] is an empty text; give the name of a class, or leave that image out")
        return one_spelling(str(label))
    if isinstance(label, numbers.Integral) or (isinstance(label, float) and label.is_integer()):
        return str(label if isinstance(label, bool) else int(label))
    if label is None or (isinstance(label, float) and math.isnan(label)):
        raise UserError(f"labels[{row}] is {label}; give each image the name of a class, or leave that image out")
    if isinstance(label, Sequence | Set | Mapping):
        write = "row[0]" if len(label) == 1 else "list(row).index(max(row))"
        raise UserError(
            f"labels[{row}] is a row of {len(label)}; expected one class for each image: "
            f"write [{write} for row in labels]"
        )
    raise UserError(
        f"labels[{row}] is {given!r:.80} ({type(label).__name__}); expected the name of a class or a whole number"
    )


def encoding(names: Iterable[bytes], kind: str) -> str:
    """The encoding that the maker of an archive meant by its `names` of members, where the archive does not say it.

    Names that are all UTF-8 are that. Others are in the first of the encodings of old systems that makes words of all;
    where none does it is code page 437, which the zip format says. kind: `zip` or `tar`, whose encodings come first.
    """
    others = [name for name in names if not name.isascii() and not _decodes(name, "utf-8")]
    if not others:
        return "utf-8"
    fitting = (e for e in _ENCODINGS[kind] if all(_decodes(n, e) and _is_words(n.decode(e)) for n in others))
    return next(fitting, "cp437")


def decoded(name: bytes, otherwise: str) -> str:
    """A name of an archive member: UTF-8 where it can be, else in the encoding `otherwise`."""
    return name.decode("utf-8" if _decodes(name, "utf-8") else otherwise, "replace")


def _decodes(name: bytes, encoding: str) -> bool:
    try:
        name.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _is_words(text: str) -> bool:
    """Whether all that is not ASCII is in words as languages have them: of one script, no capitals after small letters.

    A word in Latin script has a letter without an accent.
    """
    if not all(c.isascii() or c.isalpha() or c in _MARKS for c in text):
        return False
    for word in re.findall(r"[^\W\d_]+", text):
        scripts = {_script(c) for c in word}
        if "" in scripts or len(scripts - {"CJK"}) > 1:
            return False
        if "LATIN" in scripts and not word.isascii() and (not re.search("[A-Za-z]", word) or _capital_within(word)):
            return False
    return True


def _capital_within(word: str) -> bool:
    return any(a.islower() and b.isupper() and not b.isascii() for a, b in pairwise(word))


def _script(letter: str) -> str:
    """The script of a letter, empty where it is none that words are written in."""
    name = unicodedata.name(letter, "")
    for script in ("LATIN", "CYRILLIC", "GREEK", "CJK", "HANGUL"):
        if name.startswith(script):
            return "CJK" if script == "HANGUL" else script
    return "CJK" if name.startswith(("HIRAGANA", "KATAKANA")) else ""
