"""What recipes, methods and data sets exist: a file in the right folder is all it takes. Imports no torch."""

from __future__ import annotations

import ast
from pathlib import Path

from promptcl.config.messages import did_you_mean
from promptcl.errors import UserError

ROOT = Path(__file__).parents[1]
_FOLDERS = {"recipes": ("recipes", ".yaml"), "methods": ("methods", ".py"), "datasets": ("data/datasets", ".py")}


def available(kind: str) -> dict[str, str]:
    """Name -> one line about it, for the `recipes`, `methods` or `datasets` inside promptcl.

    The line is the first line of the YAML's header or of the module's docstring, of a method with what it learns and
    its passes (`Method.about`) behind it; nothing is imported.
    Raises UserError for another kind.
    """
    if kind not in _FOLDERS:
        raise UserError(f"{kind}: expected recipes, methods, datasets or backbones{did_you_mean(kind, _FOLDERS)}")
    folder, suffix = _FOLDERS[kind]
    files = sorted((ROOT / folder).glob(f"[!_]*{suffix}"), key=lambda path: path.stem)
    return {path.stem: _first_line(path) for path in files}


def recipe_file(name: str) -> Path:
    """The YAML file of the recipe `name`. Raises UserError if no recipe is called so."""
    known = available("recipes")
    if name not in known:
        hint = did_you_mean(name, known) or f"; they are {', '.join(known)}"
        raise UserError(f"recipe={name}: not one of the recipes that `promptcl list recipes` shows{hint}")
    return ROOT / "recipes" / f"{name}.yaml"


def _first_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        module = ast.parse(text)
        return " ".join([(ast.get_docstring(module) or "").partition("\n")[0], *_about(module)])
    return text.partition("\n")[0].lstrip("# ")


def _about(module: ast.Module) -> list[str]:
    """What the class Model of a method's module says it learns, in brackets; nothing where it says nothing."""
    models = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Model"]
    for node in (node for model in models for node in model.body):
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["about"]:
            return [f"[{ast.literal_eval(node.value)}]"]
    return []
