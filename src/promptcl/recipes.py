"""Recipes: a YAML file plus key=value -> Config, and what exists in the folders. Imports no torch."""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from promptcl.config import Config, Section
from promptcl.errors import UserError
from promptcl.hints import describe, did_you_mean, example, instead, kinds, show, unknown_key

if TYPE_CHECKING:
    from promptcl.methods._base import Method

_ROOT = Path(__file__).parent
_MAX_YAML = 100_000  # characters
_FOLDERS = {"recipes": ("configs", ".yaml"), "methods": ("methods", ".py"), "datasets": ("datasets", ".py")}


def available(kind: str) -> dict[str, str]:
    """Name -> one line, for `recipes`, `methods` or `datasets`: the folder is the registry.

    The line is the first line of the YAML's header or of the module's docstring; nothing is imported.
    Raises UserError for another kind.
    """
    if kind not in _FOLDERS:
        raise UserError(f"{kind}: expected recipes, methods or datasets{did_you_mean(kind, _FOLDERS)}")
    folder, suffix = _FOLDERS[kind]
    files = sorted((_ROOT / folder).glob(f"[!_]*{suffix}"), key=lambda path: path.stem)
    return {path.stem: _first_line(path) for path in files}


def load_config(recipe_or_path: str, overrides: Sequence[str] = (), trust: bool = False) -> Config:
    """The configuration of a recipe (by name) or YAML file, changed by `key=value` with dotted keys.

    Naming another method drops the recipe's options of its own method, naming another backbone its `backbone.kwargs`.
    Every option of the method is filled in.
    Raises UserError, in one sentence, for an unknown recipe, method, data set or key and for a bad value.
    """
    data = _read(recipe_or_path)
    try:
        return resolve(copy.deepcopy(data), overrides, trust)
    except UserError as error:
        try:
            resolve(data, (), trust)
        except UserError as alone:
            if str(alone) == str(error) and Path(recipe_or_path).is_file():  # the file is wrong, not an override
                raise UserError(f"{recipe_or_path}: {error}") from None
        raise


def resolve(data: dict[str, Any], overrides: Sequence[str] = (), trust: bool = False) -> Config:
    """As `load_config`, from the content of a YAML file; `trust` allows a method outside promptcl (`a.module`)."""
    changes = [_split(text) for text in overrides]
    backbone = data.get("backbone")
    if isinstance(backbone, dict) and dict(changes).get("backbone.name", backbone.get("name")) != backbone.get("name"):
        backbone.pop("kwargs", None)
    method = _method(
        data.pop("method", None), [text for key, text in changes if key in ("method", "method.name")], trust
    )
    try:
        for key, text in changes:
            if key.split(".")[0] != "method":
                _assign(data, Config, key, text)
        config: Config = _validate(Config, data)
        check_name("datasets", config.data.name, "data.name")
        model = _model(method["name"])
        options = model.Options
        values = {key: value for key, value in method.items() if key != "name"}
        for key, text in changes:
            if key.startswith("method.") and key != "method.name":
                _assign(values, options, key, text, prefix="method.")
        resolved = _validate(options, values, prefix="method.")
    except _UnknownKey as error:
        known = [*_keys(Config), "method.name", *_keys(_model(method["name"]).Options, "method.")]
        raise UserError(unknown_key(error.key, [name for name in known if name != "method"])) from None
    if config.memory.per_class and not model.rehearses:
        raise UserError(
            f"memory.per_class={config.memory.per_class}: method.name={method['name']} never replays images; "
            "write memory.per_class=0, or a method that is trained in every task, such as method.name=l2p"
        )
    return config.model_copy(update={"method": {"name": method["name"], **resolved.model_dump(mode="json")}})


def check_name(kind: str, name: str, key: str) -> None:
    """Raise UserError if no recipe, method or data set (`kind`) is called `name`; `key` is where it was asked for."""
    known = available(kind)
    if name not in known:
        hint = did_you_mean(name, known) or f"; they are {', '.join(known)}"
        raise UserError(f"{key}={name}: not one of the {kind} that `promptcl list {kind}` shows{hint}")


def safe_yaml(text: str) -> Any:
    """Plain data from YAML. ValueError, which says where, for anything else.

    Aliases are refused: a few lines of them make a billion values.
    """
    if len(text) > _MAX_YAML:
        raise ValueError(f": {len(text)} characters, at most {_MAX_YAML} are read")
    try:
        aliases = [event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent)]
        value = None if aliases else yaml.safe_load(text)
    except Exception as error:  # beside YAMLError: dates that are none, numbers too long, brackets without end
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f" at line {mark.line + 1}" if mark else "") from None
    if aliases:
        mark = aliases[0].start_mark
        raise ValueError(f"{f' at line {mark.line + 1}' if mark else ''}: an alias (*) is not allowed")
    return value


class _UnknownKey(Exception):
    """A dotted key that no section has."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _first_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return text.partition("\n")[0].lstrip("# ")


def _read(recipe_or_path: str) -> dict[str, Any]:
    path = Path(recipe_or_path)
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        check_name("recipes", recipe_or_path, "recipe")
        path = _ROOT / "configs" / f"{recipe_or_path}.yaml"
    try:
        data = safe_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"{path}: cannot read this recipe ({reason}); write a path to a YAML file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML{error}; expected lines such as `tasks: 10`") from None
    if not isinstance(data or {}, dict):
        raise UserError(f"{path}: expected a YAML mapping such as `tasks: 10`, got {type(data).__name__}")
    # A section whose lines are all commented out reads as null.
    return {
        str(key): {} if value is None and _section(Config, str(key)) else value for key, value in (data or {}).items()
    }


def _split(override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{override}: expected key=value, such as train.epochs=5")
    return key.strip(), text.strip()


def _method(section: Any, named: list[str], trust: bool) -> dict[str, Any]:
    """The method section with its name; `named` are the names that the command line gives, the last one counts."""
    method = {"name": section} if isinstance(section, str) else section or {}
    if not isinstance(method, dict):
        raise UserError(
            f"method={section}: expected the name of a method or a mapping with `name`; write e.g. method.name=l2p"
        )
    method = {"name": Config().method["name"], **{str(key): value for key, value in method.items()}}
    if named and named[-1] != method["name"]:
        method = {"name": named[-1]}
    name = str(method["name"])
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        if not trust:
            raise UserError(
                f"method.name={name} is code outside promptcl, which would run: give --trust if you trust it"
            )
    else:
        check_name("methods", name, "method.name")
    return method


def _model(method: str) -> type[Method]:
    from promptcl.methods._base import load_method  # imports torch: only when a run is really configured

    return load_method(method)


def _section(model: type[Section], key: str) -> type[Section] | None:
    field = model.model_fields.get(key)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _assign(data: dict[str, Any], model: type[Section], key: str, text: str, prefix: str = "") -> None:
    """Set the dotted `key` in nested `data`, parsing `text` as the type of that setting asks."""
    *sections, last = key.removeprefix(prefix).split(".")
    for position, part in enumerate(sections):
        inner = _section(model, part)
        if inner is None:
            return _assign_free(data, model, [*sections[position:], last], text, key)
        data = data.setdefault(part, {})
        model = inner
        if not isinstance(data, dict):
            return None  # the file is wrong here, which _validate reports
    if last not in model.model_fields:
        raise _UnknownKey(key)
    if inner := _section(model, last):
        raise UserError(f"{key}={text}: {key} is a section; write e.g. {key}.{example(inner)}")
    data[last] = _parse(model.model_fields[last].annotation, text)
    return None


def _assign_free(data: dict[str, Any], model: type[Section], parts: list[str], text: str, key: str) -> None:
    """Set a key inside a free-form dictionary (backbone.kwargs.depth=6)."""
    name, *inside = parts
    field = model.model_fields.get(name)
    if field is None or get_origin(field.annotation) is not dict or len(inside) != 1:
        raise _UnknownKey(key)
    data[name] = {**(data.get(name) or {}), inside[0]: _parse(Any, text)}


def _parse(annotation: Any, text: str) -> Any:
    """Text stays text where the setting is text (`123`, `on`); elsewhere it is read as YAML."""
    allowed = kinds(annotation)
    if text in ("null", "None") and type(None) in allowed:
        return None
    if any(kind is str or isinstance(kind, str) for kind in allowed):
        return text
    try:
        return safe_yaml(text)
    except ValueError:
        return text


def _validate(model: type[Section], data: dict[str, Any], prefix: str = "") -> Any:
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
        inner = _section(inner, str(part))
        value = value.get(part) if isinstance(value, dict) else value
    key = prefix + ".".join(keys)
    if first["type"] == "extra_forbidden":
        raise _UnknownKey(key)
    if field is None:  # a check over several settings of the section
        raise UserError(f"{prefix.rstrip('.') or 'recipe'}: {first['msg'].removeprefix('Value error, ')}")
    if inner is not None:
        raise UserError(f"{key}={value}: {key} is a section; write e.g. {key}.{example(inner)}")
    if first["type"] == "value_error":
        raise UserError(f"{key}={show(value)}: {first['msg'].removeprefix('Value error, ')}{instead(key, field)}")
    hint = did_you_mean(value, [k for k in kinds(field.annotation) if isinstance(k, str)]) or instead(key, field)
    raise UserError(f"{key}={show(value)}: expected {describe(field)}{hint}")


def _keys(model: type[Section], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in model.model_fields:
        inner = _section(model, name)
        found += _keys(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return found
