"""Imports point one way, files and functions stay short, and the command starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT

import promptcl

PACKAGE = Path(promptcl.__file__).parent
# A package may import those to its left; `data` and `backbone` do not know each other.
ORDER = (
    *("errors", "config", "runtime", "data", "backbone", "layers", "methods", "recipes"),
    *("store", "training", "learner", "experiments", "reports", "serve", "cli", "testing"),
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """Rooms (top-level modules or packages of promptcl) that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            names |= {f"promptcl.{alias.name}" for alias in node.names} if module == "promptcl" else {module}
    return {name.split(".")[1] for name in names if name.startswith("promptcl.")}


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package: str) -> None:
    allowed = set(ORDER[: ORDER.index(package) + 1]) - ({"data"} if package == "backbone" else set())
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") == package:
            assert imported_rooms(path) <= allowed, path


def test_no_file_grows_too_long() -> None:
    long = {path.name: n for path in MODULES if (n := len(path.read_text(encoding="utf-8").splitlines())) >= 300}
    assert not long


def test_no_function_grows_too_long() -> None:
    files = [*MODULES, ROOT / "dev.py", *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    long = {f"{path.name}: {name}": n for path in files for name, n in lines_of_functions(path) if n >= 50}
    assert not long


def lines_of_functions(path: Path) -> list[tuple[str, int]]:
    """Name and number of lines of each function of a file, methods and inner functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in found]


def test_the_command_starts_without_torch() -> None:
    code = (
        "import sys, promptcl.cli, promptcl.config, promptcl.recipes, promptcl.cli.main\n"
        "promptcl.recipes.available('methods'), promptcl.recipes.available('datasets')\n"
        "heavy = {'torch', 'timm', 'torchvision', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
