"""What all pages share: figures with their numbers, templates that escape, whole files. Imports no torch."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from promptcl.errors import UserError
from promptcl.reports.drawing import Drawing


@dataclass(frozen=True)
class Numbers:
    """The numbers behind a figure, as the rows of a table."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Shown:
    """A figure, a remark below it, and its numbers."""

    drawing: Drawing
    remark: str
    numbers: Numbers


def check(out: Path) -> None:
    """Refuse a name that no page has. Raises UserError."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: expected the name of a page; write e.g. --out report.html")


def render(template: str, **values: object) -> str:
    """The page that the file `template` of this package makes of `values`; every text in them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _source(name: str) -> str:
    return resources.files("promptcl.reports").joinpath(name).read_text(encoding="utf-8")


def save(out: Path, text: str, shown: Sequence[Shown]) -> int:
    """Write the figures as PNGs into the folder `out`-figures, then the page `out`; returns the number of figures.

    Each file is written whole or not at all. A link that lies where a file is to be is replaced, never followed.
    Raises UserError where the folder is a link, OSError where something cannot be written.
    """
    folder = out.with_name(f"{out.stem}-figures")
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and figures belong into a folder; remove it, or write another --out")
    folder.mkdir(parents=True, exist_ok=True)
    for one in shown:
        _write(folder / f"{one.drawing.name}.png", one.drawing.png)
    _write(out, text.encode("utf-8", "backslashreplace"))  # names of files may be no Unicode
    return len(shown)


def _write(path: Path, data: bytes) -> None:
    # A name that nobody can guess, and "x": whatever a stranger has put there is not opened.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
