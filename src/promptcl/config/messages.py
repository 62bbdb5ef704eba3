"""Sentences about a bad key or value: what was expected, what is nearest, what to write. Imports no torch."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from promptcl.config.schema import Section

# What other code bases call these settings; consulted only to answer "did you mean".
_ALIASES = {
    "model": "backbone.name",
    "checkpoint": "backbone.weights",
    "dataset": "data.name",
    "domains": "data.order",
    "buffer_size": "memory.per_class",
    "num_tasks": "tasks",
    "learning_rate": "train.lr",
    "size": "method.pool_size",
    "length": "method.prompt_length",
    "pull_constraint_coeff": "method.pull",
    "lambda": "method.pull",
}
_LIMITS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The text `: did you mean X?` for the nearest known word, or an empty text if none is near."""
    close = _nearest(str(word), list(known))
    return f": did you mean {close}?" if close else ""


def unknown_key(key: str, known: list[str]) -> str:
    """The sentence for a dotted key that is not among the `known` ones, with the nearest or all of its neighbours."""
    section, _, last = key.rpartition(".")
    lasts = {name.rpartition(".")[2]: name for name in reversed(known)}
    lasts |= {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    inside = next((name for name in known if key.startswith(f"{name}.")), None)
    for candidate in (lasts.get(last), _ALIASES.get(last), inside, lasts.get(_nearest(last, list(lasts)) or "")):
        if candidate in known:
            return f"unknown key {key}: did you mean {candidate}?"
    siblings = [name for name in known if name.startswith(f"{section or key}.")]
    return f"unknown key {key}: expected one of {', '.join(siblings or dict.fromkeys(map(_outline, known)))}"


def is_slip(key: str, known: list[str]) -> bool:
    """Whether `key` is a slip of the fingers away from one of the `known` keys of its own section."""
    section, _, last = key.rpartition(".")
    names = [name.rpartition(".")[2] for name in known if section and name.rpartition(".")[0] == section]
    return any(_slips(last.lower(), name) <= _allowed(last) for name in names)


def _allowed(word: str) -> int:
    """How many slips make of a word still the same word."""
    return min(len(word) // 3, max(1, len(word) // 4))


def _nearest(word: str, known: list[str]) -> str | None:
    """The known word that `word` is a slip of the fingers away from, or that has it for a part; None if none is."""
    word = word.lower()
    slips = {name: _slips(word, name.lower()) for name in known}
    close = [name for name in known if slips[name] <= _allowed(word)]
    close.sort(key=lambda name: (slips[name], not name.startswith(word)))
    close = close or [name for name in known if _part(word, name.lower())]
    return close[0] if close else None


def _part(one: str, other: str) -> bool:
    """Whether one word begins with the other, or all words of one (`num_epochs`) are among those of the other."""
    begins = min(len(one), len(other)) >= 3 and (one.startswith(other) or other.startswith(one))
    left, right = set(one.split("_")), set(other.split("_"))
    return begins or left <= right or right <= left


def _slips(one: str, other: str) -> int:
    """Letters to insert, take out, replace or swap with their neighbour until `one` is `other`."""
    if abs(len(one) - len(other)) > len(one) // 4 + 1:
        return len(other) + len(one)
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, left in enumerate(one):
        last, before, row = before, row, [i + 1]
        for j, right in enumerate(other):
            row.append(min(before[j] + (left != right), before[j + 1] + 1, row[j] + 1))
            if i and j and left == other[j - 1] and one[i - 1] == right:
                row[-1] = min(row[-1], last[j - 1] + 1)
    return row[-1]


def _outline(key: str) -> str:
    """The key, or `section.*` for a key inside a section."""
    section, dot, _ = key.partition(".")
    return f"{section}.*" if dot else key


def describe(field: FieldInfo) -> str:
    """What a setting takes, in words such as `a whole number greater than 0 or null`."""
    allowed = kinds(field.annotation)
    words = [kind for kind in allowed if isinstance(kind, str)]
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    text = (
        f"one of {', '.join(words)}" if words else next((names[kind] for kind in allowed if kind in names), "a value")
    )
    if any(get_origin(kind) is tuple for kind in allowed):
        numbers = any(int in get_args(kind) for kind in allowed)
        text = "a list such as [50, 10, 10]" if numbers else "a list such as [a, b]"
        text = f"a whole number or {text}" if int in allowed else text
    if get_origin(field.annotation) is tuple:
        text = f"{len(get_args(field.annotation))} numbers"
    if get_origin(field.annotation) is dict:
        text = "a mapping"
    limits = [
        f"{phrase} {getattr(limit, name)}"
        for limit in field.metadata
        for name, phrase in _LIMITS.items()
        if getattr(limit, name, None) is not None
    ]
    return f"{text} {' and '.join(limits)}".rstrip() + (" or null" if type(None) in allowed else "")


def instead(key: str, field: FieldInfo) -> str:
    """The text `; write e.g. key=default`, or an empty text where the default is null."""
    default = field.get_default(call_default_factory=True)
    return "" if default is None else f"; write e.g. {key}={show(default)}"


def example(section: type[Section]) -> str:
    """The text `name=default` for the first setting of a section."""
    name, field = next(iter(section.model_fields.items()))
    return f"{name}={show(field.get_default(call_default_factory=True))}"


def show(value: object) -> str:
    """A value as it would be written on the command line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(show, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The types (or literal values) that an annotation allows, unions flattened."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in kinds(part))
    return get_args(annotation) if get_origin(annotation) is Literal else (annotation,)
