"""Make a configuration from a recipe or a YAML file and key=value. Imports no torch until it does."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcl.config import Config, Section
from promptcl.config.extensions import check_trust
from promptcl.config.messages import is_slip, unknown_key
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
from promptcl.config.reading import check_read, decides, is_of_a_run, keys_in
from promptcl.errors import UserError
from promptcl.recipes.registry import ROOT, available, recipe_file
from promptcl.runtime import disk

if TYPE_CHECKING:
    from promptcl.methods._base import Method

_MOST = 2**20  # bytes of a recipe
COMPARE = "compare"
"""Key of a recipe under which it lists what `promptcl compare` runs of it; nothing else reads it."""


def load_config(
    recipe_or_path: str, overrides: Sequence[str] = (), trust: bool = False, others: bool = False
) -> Config:
    """The configuration of a recipe (by name) or YAML file, changed by `key=value` with dotted keys.

    Naming another method drops the recipe's options of its own method, naming another backbone its `backbone.kwargs`,
    naming another data set its `data.root` and `data.order`.
    Every option of the method is filled in. `trust` allows a method or data set outside promptcl, whose code then runs:
    NAME.py in the current folder, or a dotted name. `others`: it is for `of_another`, so that what the method of the
    recipe does not read is allowed.
    Raises UserError, in one sentence, for an unknown recipe, method, data set or key and for a bad value.
    """
    path, data = _read(recipe_or_path)
    given = [] if path.is_relative_to(ROOT) or is_of_a_run(data) or others else keys_in(data)
    common, overrides = (overrides, ()) if others else ((), overrides)
    try:
        return resolve(copy.deepcopy(data), overrides, trust, given, common)
    except UserError as error:
        if path.is_relative_to(ROOT):
            raise
        try:
            resolve(data, (), trust, given)
        except UserError as alone:
            if str(alone) == str(error):  # the file is wrong, not an override
                raise UserError(f"{recipe_or_path}: {error}") from None
        raise


def of_another(
    base: Config,
    name: str,
    overrides: Sequence[str],
    own: bool = False,
    trust: bool = False,
    common: Sequence[str] = (),
) -> Config:
    """The configuration of another method, or recipe, on the stream and backbone of `base`.

    `name`: a recipe, whose method it is with its options; or a method, with the options of `base` where that has this
    method, of the recipe called like it if there is one, else its defaults. It trains as `base` says, or with `own` as
    its recipe does, changed by `common`. What this method does not read of `base` and `common` is passed over.
    Raises UserError as `load_config`.
    """
    data, recipes = base.model_dump(mode="json"), available("recipes")
    recipe = next((one for one in (name, name.replace("_", "-")) if one in recipes or os.path.isfile(one)), None)
    if name != base.method["name"] or own:
        data["method"] = {"name": name}
        if recipe is not None:
            section = _read(recipe)[1]
            data["method"] = section.get("method", data["method"])
            if own:
                data["train"] = section.get("train", {})
    return resolve(data, overrides, trust, common=common)


def resolve(
    data: dict[str, Any],
    overrides: Sequence[str] = (),
    trust: bool = False,
    given: Sequence[str] = (),
    common: Sequence[str] = (),
) -> Config:
    """The configuration in `data`, the content of a YAML file, changed by `key=value`; `data` is used up.

    `trust` as of `load_config`; without it nothing outside promptcl is imported. `given`: keys of `data` that were
    written by hand; where an override makes one idle, as another method does, that is not held against it. `common`:
    overrides that come first, and that may be idle because other methods read them (`check_common`).
    Raises UserError as `load_config` does.
    """
    changes = [split_override(text) for text in (*common, *overrides)]
    for section, belongs in (("backbone", ("kwargs",)), ("data", ("root", "order"))):
        inner = data.get(section)
        if isinstance(inner, dict) and dict(changes).get(f"{section}.name", inner.get("name")) != inner.get("name"):
            for key in belongs:
                inner.pop(key, None)
    method = _method(data.pop("method", None), [text for key, text in changes if key in ("method", "method.name")])
    name = method.pop("name")
    check_trust("method", name, trust)
    try:
        for key, text in changes:
            if key.split(".")[0] != "method":
                assign(data, Config, key, text)
        config: Config = validate(Config, data)
        check_trust("data", config.data.name, trust)
        model = _model(name)
        options = model.Options
        for key, text in changes:
            if key.startswith("method.") and key != "method.name":
                assign(method, options, key, text, prefix="method.")
        resolved = validate(options, method, prefix="method.")
    except UnknownKey as error:
        known = [*keys_of(Config), "method.name"]
        if not is_slip(error.key, known):  # importing the method takes seconds
            known += keys_of(_model(name).Options, "method.")
        raise UserError(unknown_key(error.key, [key for key in known if key != "method"])) from None
    config = config.model_copy(update={"method": {"name": name, **resolved.model_dump(mode="json")}})
    keys, own = [key for key, _ in changes], [key for key, _ in changes[len(common) :]]
    check_read(config, resolved, model.reads(resolved), own if any(map(decides, keys)) else [*own, *given])
    # `make_stream` asks what was written by hand: whether data read it is known once they are there.
    config.model_fields_set.intersection_update(key.partition(".")[0] for key in (*keys, *given))
    return config


def check_common(configs: Sequence[Config], overrides: Sequence[str], recipe: Config) -> None:
    """Raise UserError for an override that neither a compared method reads nor that of the `recipe` itself.

    configs: one for each method, which has the overrides that the method reads. What the recipe's own method reads is
    passed over, so that the line for many methods serves for some of them.
    """
    for key, text in map(split_override, overrides):
        if any(_is_read(config, key) for config in (*configs, recipe)):
            continue
        for config in configs:  # what no method could read is said with its reason
            check_read(config, Section(), ("train.", "memory."), [key])
        names = ", ".join(dict.fromkeys(str(config.method["name"]) for config in configs))
        raise UserError(f"{key}={text}: none of the methods ({names}) reads it; leave it out, or add one that does")


def _is_read(config: Config, key: str) -> bool:
    model = _model(str(config.method["name"]))
    options = model.Options(**{name: value for name, value in config.method.items() if name != "name"})
    try:
        check_read(config, options, model.reads(options), [key])
    except UserError:
        return False
    return True


def _read(recipe_or_path: str) -> tuple[Path, dict[str, Any]]:
    """The file of a recipe or path, and the mapping in it. Raises UserError: it cannot be read, it is no mapping."""
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
    (data or {}).pop(COMPARE, None)
    # A section whose lines are all commented out reads as null.
    return path, {
        str(key): {} if value is None and section_of(Config, str(key)) else value for key, value in (data or {}).items()
    }


class Compared(Section):
    """A row of a comparison that a recipe lists."""

    method: str
    """A method or recipe and settings of its own, as `promptcl compare` takes them and shows them."""
    also: str = ""
    """Further settings, which are not shown."""
    published: str = ""
    """The number that the paper has for it."""


def compared(recipe_or_path: str) -> list[Compared]:
    """The rows of the comparison that a recipe lists, in order; none where it lists none. Raises UserError as train."""
    path = Path(recipe_or_path)
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        path = recipe_file(recipe_or_path)
    try:
        rows = safe_yaml(disk.read(path, _MOST).decode("utf-8")).get(COMPARE)
        return [Compared.model_validate(row) for row in rows or []]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its `{COMPARE}` is no list of rows; write `- method: ncm` for each") from error


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
