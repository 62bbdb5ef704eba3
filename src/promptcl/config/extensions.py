"""Find the module behind a method's or a data set's name: inside promptcl, in the current folder, or installed.

A name inside promptcl wins over a file of the same name. Whatever lies outside promptcl is code of its author that
importing runs: `check_trust` refuses it unless the user said `--trust`. Imports no torch by itself.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal

from promptcl.config.messages import did_you_mean
from promptcl.config.schema import Config
from promptcl.errors import UserError

Kind = Literal["method", "data"]
"""The section of the configuration whose `name` is asked for."""

_ROOT = Path(__file__).parents[1]
PACKAGES: dict[Kind, str] = {"method": "promptcl.methods", "data": "promptcl.data.datasets"}
"""Where the modules inside promptcl are."""
_LISTED = {"method": "methods", "data": "datasets"}
_EXPECTED: dict[Kind, tuple[tuple[str, ...], str]] = {
    "method": (("Model",), "a class Model"),
    "data": (("load", "load_domains"), "a function load or load_domains"),
}


def builtin_names(package: str) -> list[str]:
    """Names of the modules in a package of promptcl, sorted; nothing is imported."""
    folder = _ROOT.joinpath(*package.split(".")[1:])
    return sorted(path.stem for path in folder.glob("[!_]*.py"))


def is_builtin(package: str, name: str) -> bool:
    """Whether `name` is a module of that package of promptcl, such as `l2p` of `promptcl.methods`."""
    return name in builtin_names(package)


def needs_trust(config: Config) -> bool:
    """Whether the method or the data set of `config` is code outside promptcl."""
    return not (
        is_builtin(PACKAGES["method"], str(config.method["name"])) and is_builtin(PACKAGES["data"], config.data.name)
    )


def check_trust(kind: Kind, name: str, trust: bool) -> None:
    """Raise UserError where `name` is not inside promptcl and `trust` was not given; nothing is imported.

    With `trust` nothing is checked here: whether there is such a module is for `load_module` to say.
    """
    if trust or is_builtin(PACKAGES[kind], name):
        return
    file = _file_here(name)
    if file is None and not _is_dotted(name):
        raise UserError(_unknown(kind, PACKAGES[kind], name))
    where = f"the file {file.name} in the current folder" if file else "code outside promptcl"
    raise UserError(f"{kind}.name={name} is {where}, which would run: give --trust if you trust it")


def load_module(kind: Kind, package: str, name: str) -> ModuleType:
    """Import `name`: a module of `package`, NAME.py in the current folder, or a dotted name found there or installed.

    Importing runs code, so a name that comes from a file has to pass `check_trust` before. The current folder is on
    Python's path during the import only.
    Raises UserError: no such module, an error while it is imported, nothing in it that a method or data set has.
    """
    if is_builtin(package, name):
        return importlib.import_module(f"{package}.{name}")
    file = _file_here(name)
    if file is None and not _is_dotted(name):
        raise UserError(_unknown(kind, package, name))
    names, expected = _EXPECTED[kind]
    try:
        with _current_folder_on_path():
            module = importlib.import_module(name) if file is None else run_file(file)
    except Exception as error:  # the code is its author's: it raises anything
        raise UserError(
            f"{kind}.name={name} cannot be used ({reason(error)}); expected a module with {expected}"
        ) from error
    if not any(hasattr(module, one) for one in names):
        raise UserError(f"{kind}.name={name} cannot be used: expected a module with {expected}, which it does not have")
    return module


def _is_dotted(name: str) -> bool:
    return "." in name and all(part.isidentifier() for part in name.split("."))


def _file_here(name: str) -> Path | None:
    """NAME.py in the current folder, if there is one."""
    file = Path(f"{name}.py")
    # Unlike `file.is_file()` this answers False where a name is too long for the file system.
    return file.absolute() if name.isidentifier() and os.path.isfile(file) else None


def _unknown(kind: Kind, package: str, name: str) -> str:
    known = builtin_names(package)
    hint = did_you_mean(name, known) or f"; they are {', '.join(known)}"
    listed = _LISTED[kind]
    here = f", nor a file {name}.py in the current folder (used with --trust)" if name.isidentifier() else ""
    return f"{kind}.name={name}: not one of the {listed} that `promptcl list {listed}` shows{here}{hint}"


def run_file(file: Path) -> ModuleType:
    """The module in `file`, a path that ends in .py, run once in this process. Raises what its code raises."""
    # A name of its own: a file random.py must not take the place of Python's module for everybody else.
    name = f"promptcl_extension_{file.stem}"
    present = sys.modules.get(name)
    if present is not None and present.__file__ == str(file):
        return present
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """Put the current folder first on Python's path, as `python FILE.py` there would."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def reason(error: Exception) -> str:
    """What was raised, and the line of code that raised it."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or '?').name} line {error.lineno}: {error.msg}"
    text = f"{type(error).__name__}: {error}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    inside = [frame for frame in frames if frame.filename != __file__]
    return f"{Path(inside[-1].filename).name} line {inside[-1].lineno}: {text}" if inside else text
