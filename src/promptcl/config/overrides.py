"""Turn YAML text and key=value into settings, and say which key or value is wrong. Imports no torch."""

from __future__ import annotations

from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from promptcl.config.messages import describe, did_you_mean, example, instead, kinds, show
from promptcl.config.schema import Section
from promptcl.errors import UserError

_MAX_YAML = 100_000  # characters
_MAX_DEPTH = 50  # brackets within brackets: the time of reading grows with the square of it


def safe_yaml(text: str, words: bool = False, most: int = _MAX_YAML) -> Any:
    """Read plain data from YAML text of at most `most` characters; with `words`, values as written: `2021` is a text.

    Raises ValueError, which says at which line, for anything else, for text that is too long or nested too deep, and
    for aliases: a few lines of them make a billion values.
    """
    if len(text) > most:
        raise ValueError(f": {len(text)} characters, at most {most} are read")
    try:
        refused = _refused(text)
        value = None if refused else yaml.load(text, yaml.BaseLoader if words else yaml.SafeLoader)
    except Exception as error:  # beside YAMLError: dates that are none, numbers too long
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f" at line {mark.line + 1}" if mark else "") from None
    if refused:
        raise ValueError(refused)
    return value


def _refused(text: str) -> str:
    """Where YAML text holds an alias or too many levels, and which of both; empty if neither."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        alias = isinstance(event, yaml.AliasEvent)
        if alias or depth > _MAX_DEPTH:
            what = "an alias (*) is not allowed" if alias else f"more than {_MAX_DEPTH} levels of nesting"
            return f"{f' at line {event.start_mark.line + 1}' if event.start_mark else ''}: {what}"
    return ""


class UnknownKey(Exception):
    """Raised for a dotted key that is no setting; whoever knows all keys turns it into a sentence."""

    def __init__(self, key: str) -> None:
        """key: the whole dotted key, for the message."""
        super().__init__(key)
        self.key = key


def split_override(override: str) -> tuple[str, str]:
    """Split the text `key=value` into key and value. Raises UserError where there is no `=` or no key."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{override}: expected key=value, such as train.epochs=5")
    return key.strip(), text.strip()


def section_of(model: type[Section], key: str) -> type[Section] | None:
    """The section that setting `key` of `model` is, or None where it is a plain value."""
    field = model.model_fields.get(key)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def assign(data: dict[str, Any], model: type[Section], key: str, text: str, prefix: str = "") -> None:
    """Set the dotted `key` in the nested `data`, reading `text` as the type of that setting asks.

    `prefix` is left out of the key. Raises UnknownKey for a key that `model` does not have, UserError for a section.
    """
    *sections, last = key.removeprefix(prefix).split(".")
    for position, part in enumerate(sections):
        inner = section_of(model, part)
        if inner is None:
            return _assign_free(data, model, [*sections[position:], last], text, key)
        data = data.setdefault(part, {})
        model = inner
        if not isinstance(data, dict):
            return None  # the file is wrong here, which `validate` reports
    if last not in model.model_fields:
        raise UnknownKey(key)
    if inner := section_of(model, last):
        raise UserError(f"{key}={text}: {key} is a section; write e.g. {key}.{example(inner)}")
    data[last] = _parse(model.model_fields[last].annotation, text)
    return None


def _assign_free(data: dict[str, Any], model: type[Section], parts: list[str], text: str, key: str) -> None:
    """Set a key inside a free-form dictionary (backbone.kwargs.depth=6)."""
    name, *inside = parts
    field = model.model_fields.get(name)
    if field is None or get_origin(field.annotation) is not dict or len(inside) != 1:
        raise UnknownKey(key)
    data[name] = {**(data.get(name) or {}), inside[0]: _parse(Any, text)}


def _parse(annotation: Any, text: str) -> Any:
    """Text stays text where the setting is text (`123`, `on`); elsewhere it is read as YAML."""
    allowed = kinds(annotation)
    if text in ("null", "None") and type(None) in allowed:
        return None
    if any(kind is str or isinstance(kind, str) for kind in allowed):
        return text
    try:
        return safe_yaml(text, words=_are_names(allowed))
    except ValueError:
        return text


def _are_names(allowed: tuple[Any, ...]) -> bool:
    """Whether a setting that allows these types is a list of names."""
    return any(get_origin(kind) is tuple and get_args(kind)[:1] == (str,) for kind in allowed)


def keep_names(data: Any, words: Any, model: type[Section]) -> None:
    """Put lists of names into `data` as they are written in `words`, the same YAML read with `words`."""
    for key, field in model.model_fields.items():
        if not isinstance(data, dict) or key not in data:
            continue
        if inner := section_of(model, key):
            keep_names(data[key], words[key], inner)
        elif isinstance(data[key], list) and _are_names(kinds(field.annotation)):
            data[key] = words[key]


def validate(model: type[Section], data: dict[str, Any], prefix: str = "") -> Any:
    """An instance of `model` from `data`; `prefix` stands before the keys in messages.

    Raises UnknownKey for a key that `model` does not have, UserError in one sentence for a bad value.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
    keys: list[str] = []
    value: Any = data
    field: FieldInfo | None = None
    inner: type[Section] | None = model
    for part in first["loc"]:
        if inner is None:
            break  # inside a value: a member of a pair, a branch of a union
        keys.append(str(part))
        field = inner.model_fields.get(str(part))
        inner = section_of(inner, str(part))
        value = value.get(part) if isinstance(value, dict) else value
    key = prefix + ".".join(keys)
    if first["type"] == "extra_forbidden":
        raise UnknownKey(key)
    if field is None:  # a check over several settings of the section
        raise UserError(f"{prefix.rstrip('.') or 'recipe'}: {first['msg'].removeprefix('Value error, ')}")
    if inner is not None:
        raise UserError(f"{key}={value}: {key} is a section; write e.g. {key}.{example(inner)}")
    if first["type"] == "value_error":
        raise UserError(f"{key}={show(value)}: {first['msg'].removeprefix('Value error, ')}{instead(key, field)}")
    hint = did_you_mean(value, [k for k in kinds(field.annotation) if isinstance(k, str)]) or instead(key, field)
    raise UserError(f"{key}={show(value)}: expected {describe(field)}{hint}")


def keys_of(model: type[Section], prefix: str = "") -> list[str]:
    """All dotted keys of `model`, those of its sections included."""
    found: list[str] = []
    for name in model.model_fields:
        inner = section_of(model, name)
        found += keys_of(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return found
