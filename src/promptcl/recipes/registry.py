"""What methods, data sets and recipes exist: the folder is the registry. Imports no torch."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from promptcl.config.messages import did_you_mean
from promptcl.errors import UserError

if TYPE_CHECKING:
    pass


ROOT = Path(__file__).parents[1]
_FOLDERS = {"recipes": ("recipes", ".yaml"), "methods": ("methods", ".py"), "datasets": ("data/datasets", ".py")}


def available(kind: str) -> dict[str, str]:
    """Name -> one line, for `recipes`, `methods` or `datasets`: the folder is the registry.

    The line is the first line of the YAML's header or of the module's docstring; nothing is imported.
    Raises UserError for another kind.
    """
    if kind not in _FOLDERS:
        raise UserError(f"{kind}: expected recipes, methods or datasets{did_you_mean(kind, _FOLDERS)}")
    folder, suffix = _FOLDERS[kind]
    files = sorted((ROOT / folder).glob(f"[!_]*{suffix}"), key=lambda path: path.stem)
    return {path.stem: _first_line(path) for path in files}


def check_name(kind: str, name: str, key: str) -> None:
    """Raise UserError if no recipe, method or data set (`kind`) is called `name`; `key` is where it was asked for."""
    known = available(kind)
    if name not in known:
        hint = did_you_mean(name, known) or f"; they are {', '.join(known)}"
        raise UserError(f"{key}={name}: not one of the {kind} that `promptcl list {kind}` shows{hint}")


def _first_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return text.partition("\n")[0].lstrip("# ")
