"""Make a configuration from a recipe or a YAML file and key=value. Imports no torch until it does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcl.config import Config
from promptcl.config.extensions import check_trust
from promptcl.config.messages import unknown_key
from promptcl.config.overrides import (
    UnknownKey,
    assign,
    keep_names,
    keys_of,
    safe_yaml,
    section_of,
    split_override,
    validate,
)
from promptcl.errors import UserError
from promptcl.recipes.registry import recipe_file
from promptcl.runtime import disk

if TYPE_CHECKING:
    from promptcl.methods._base import Method

_MOST = 2**20  # bytes of a recipe


def load_config(recipe_or_path: str, overrides: Sequence[str] = (), trust: bool = False) -> Config:
    """The configuration of a recipe (by name) or YAML file, changed by `key=value` with dotted keys.

    Naming another method drops the recipe's options of its own method, naming another backbone its `backbone.kwargs`.
    Every option of the method is filled in. `trust` allows a method or data set outside promptcl, whose code then runs:
    NAME.py in the current folder, or a dotted name.
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
    """The configuration in `data`, the content of a YAML file, changed by `key=value`; `data` is used up.

    `trust` as of `load_config`; without it nothing outside promptcl is imported.
    Raises UserError as `load_config` does.
    """
    changes = [split_override(text) for text in overrides]
    backbone = data.get("backbone")
    if isinstance(backbone, dict) and dict(changes).get("backbone.name", backbone.get("name")) != backbone.get("name"):
        backbone.pop("kwargs", None)
    method = _method(data.pop("method", None), [text for key, text in changes if key in ("method", "method.name")])
    name = method.pop("name")
    check_trust("method", name, trust)
    try:
        for key, text in changes:
            if key.split(".")[0] != "method":
                assign(data, Config, key, text)
        config: Config = validate(Config, data)
        check_trust("data", config.data.name, trust)
        options = _model(name).Options
        for key, text in changes:
            if key.startswith("method.") and key != "method.name":
                assign(method, options, key, text, prefix="method.")
        resolved = validate(options, method, prefix="method.")
    except UnknownKey as error:
        known = [*keys_of(Config), "method.name", *keys_of(_model(name).Options, "method.")]
        raise UserError(unknown_key(error.key, [key for key in known if key != "method"])) from None
    return config.model_copy(update={"method": {"name": name, **resolved.model_dump(mode="json")}})


def _read(recipe_or_path: str) -> dict[str, Any]:
    """The mapping in the YAML of a recipe or file. Raises UserError for what cannot be read or is no mapping."""
    path = Path(recipe_or_path)
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        path = recipe_file(recipe_or_path)
    try:
        text = disk.read(path, _MOST).decode("utf-8")
        data = safe_yaml(text)
        keep_names(data, safe_yaml(text, words=True), Config)
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


def _method(section: Any, named: list[str]) -> dict[str, Any]:
    """The method section with its name; `named` are the names that the command line gives, the last one counts."""
    method = {"name": section} if isinstance(section, str) else section or {}
    if not isinstance(method, dict):
        raise UserError(
            f"method={section}: expected the name of a method or a mapping with `name`; write e.g. method.name=l2p"
        )
    method = {"name": Config().method["name"], **{str(key): value for key, value in method.items()}}
    if named and named[-1] != method["name"]:
        method = {"name": named[-1]}
    if method["name"] == "joint":
        raise UserError(
            "method.name=joint is the setting joint=true now; write method.name=linear joint=true train.mask=false"
        )
    return {**method, "name": str(method["name"])}


def _model(method: str) -> type[Method]:
    from promptcl.methods._base import load_method  # imports torch: only when a run is really configured

    return load_method(method)
