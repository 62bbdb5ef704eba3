"""What all pages share: figures with their numbers, templates that escape, whole files. Imports no torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from promptcl.errors import UserError
from promptcl.reports.drawing import Drawing, seen
from promptcl.runtime import disk

_FOREIGN = re.compile("<(meta|base|link|script|iframe|object|embed|form|input|button)", re.IGNORECASE)
"""Elements that no template of this package has below its head."""


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
        finalize=_finished,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    # No policy in a page can forbid `refresh`: were any text not escaped one day, no page is better than that one.
    if found := _FOREIGN.search(text.partition("<title>")[2]):
        raise UserError(f"the page was not written: there is a raw {found[0]}> in a text of it; report this as a bug")
    return text


def _finished(value: object) -> object:
    """Text without characters that cannot be seen, such as those that turn the direction of what follows."""
    return value if isinstance(value, Markup) else "\n".join(map(seen, str(value).split("\n")))


def _source(name: str) -> str:
    return resources.files("promptcl.reports").joinpath(name).read_text(encoding="utf-8")


def save(out: Path, text: str, shown: Sequence[Shown]) -> int:
    """Write the figures as PNGs into the folder `out`-figures, then the page `out`; returns the number of figures.

    All of them are written or none. A link that lies where a file is to be is replaced, never followed.
    Raises UserError where the folder is a link, OSError where something cannot be written.
    """
    folder = out.with_name(f"{out.stem}-figures")
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and figures belong into a folder; remove it, or write another --out")
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = {folder / f"{one.drawing.name}.png": one.drawing.png for one in shown}
        disk.write_all({**figures, out: text.encode("utf-8", "backslashreplace")})
    except BaseException:
        if fresh:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return len(shown)
