"""Recipes: a YAML file plus key=value -> Config, and what exists in the folders. Imports no torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcl.config.messages import unknown_key
from promptcl.config.overrides import UnknownKey, assign, keys_of, safe_yaml, section_of, split_override, validate
from promptcl.config.schema import Config
from promptcl.errors import UserError
from promptcl.recipes.registry import ROOT, check_name

if TYPE_CHECKING:
    from promptcl.methods._base import Method


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
    changes = [split_override(text) for text in overrides]
    backbone = data.get("backbone")
    if isinstance(backbone, dict) and dict(changes).get("backbone.name", backbone.get("name")) != backbone.get("name"):
        backbone.pop("kwargs", None)
    method = _method(
        data.pop("method", None), [text for key, text in changes if key in ("method", "method.name")], trust
    )
    try:
        for key, text in changes:
            if key.split(".")[0] != "method":
                assign(data, Config, key, text)
        config: Config = validate(Config, data)
        check_name("datasets", config.data.name, "data.name")
        model = _model(method["name"])
        options = model.Options
        values = {key: value for key, value in method.items() if key != "name"}
        for key, text in changes:
            if key.startswith("method.") and key != "method.name":
                assign(values, options, key, text, prefix="method.")
        resolved = validate(options, values, prefix="method.")
    except UnknownKey as error:
        known = [*keys_of(Config), "method.name", *keys_of(_model(method["name"]).Options, "method.")]
        raise UserError(unknown_key(error.key, [name for name in known if name != "method"])) from None
    return config.model_copy(update={"method": {"name": method["name"], **resolved.model_dump(mode="json")}})


def _read(recipe_or_path: str) -> dict[str, Any]:
    path = Path(recipe_or_path)
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        check_name("recipes", recipe_or_path, "recipe")
        path = ROOT / "recipes" / f"{recipe_or_path}.yaml"
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
        str(key): {} if value is None and section_of(Config, str(key)) else value for key, value in (data or {}).items()
    }


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
