"""The command `compare`: several methods on one stream, in one table. Heavy imports wait inside."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcl.cli.errors import one_sentence
from promptcl.cli.options import Trust, extra
from promptcl.cli.train import seed_settings
from promptcl.errors import UserError

if TYPE_CHECKING:
    from promptcl.experiments.compare import Entry

app = typer.Typer()


@app.command()
@one_sentence
def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [METHOD]... [KEY=VALUE]...",
            help="A recipe or YAML file that says stream, backbone and training; methods or recipes of methods, each "
            "with settings of its own behind it in quotes, as 'coda method.length=8' (none: those that the recipe "
            "lists); settings for all of them.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="1,2,3", help="Run each method with each seed.")
    ] = None,
    own: Annotated[
        bool, typer.Option("--own", help="Each method trains as its own recipe says, not as RECIPE does.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the comparison.", show_default="runs/compare-RECIPE")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Rows alone, for logs.")] = False,
    trust: Trust = False,
) -> None:
    """Learn the same tasks with several methods; one table, compare.json and, with the extra `report`, one page.

    Interrupted: say the same line again. Finished runs are kept, and the one that was interrupted goes on.
    """
    recipe, methods, settings = split(arguments)
    folder = _folder(out or Path("runs") / f"compare-{Path(recipe).stem}")
    from promptcl.experiments import compare as experiment
    from promptcl.experiments.side_by_side import LEGEND, Table

    made = entries(recipe, methods, settings, seeds, own, trust)
    table = Table(made, live=not quiet)
    try:
        rows = experiment.run(made, folder, table)
    except KeyboardInterrupt:
        table.close()
        flags = [flag for flag, given in (("--own", own), ("--trust", trust), ("--quiet", quiet)) if given]
        words = [*arguments, *(["--seeds", seeds] if seeds else []), *flags, "--out", str(folder)]
        print(f"go on with: promptcl compare {shlex.join(words)}", file=sys.stderr)
        raise
    finally:
        table.close()
    print(f"{LEGEND}\n{folder / experiment.FILE}")
    _page([folder / one.folder for one, row in zip(made, rows, strict=True) if "failed" not in row], folder)
    if failed := [row["method"] for row in rows if "failed" in row]:
        raise UserError(f"failed: {', '.join(failed)}; mend the settings and say the line again, the others are kept")


def _folder(out: Path) -> Path:
    if out.is_file():
        raise UserError(f"--out {out}: it is a file; write the path of a folder")
    return out


def split(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """The recipe, the methods (those that it lists, where none is named) and the settings of all.

    Raises UserError for no method, one that cannot be read, or one twice.
    """
    settings = [text for text in arguments if "=" in "".join(text.split()[:1]) and not os.path.isfile(text)]
    words = [text for text in arguments if text not in settings]
    if len(words) == 1:
        from promptcl.recipes.load import compared

        words += [row.method for row in compared(words[0])]
    if len(words) < 2:
        raise UserError(f"{' '.join(words)}: expected a recipe and methods; write e.g. promptcl compare lite ncm coda")
    if given := next((text for text in settings if text.partition("=")[0].strip().startswith("method")), None):
        raise UserError(f"{given}: options belong to one method; write them behind it in quotes: '{words[1]} {given}'")
    recipe, *methods = words
    for text in methods:
        words_of(text)
    folders = [folder_of(method) for method in methods]
    if twice := next((method for method in methods if folders.count(folder_of(method)) > 1), None):
        raise UserError(f"{twice} is there twice; leave one out, or give it other settings: '{twice} train.lr=0.01'")
    return recipe, methods, settings


def entries(
    recipe: str, methods: list[str], settings: list[str], seeds: str | None, own: bool, trust: bool
) -> list[Entry]:
    """What is run: the configurations of each method, one for each seed. Raises UserError for bad ones, before any."""
    from promptcl.experiments.compare import Entry
    from promptcl.recipes import available
    from promptcl.recipes.load import Compared, check_common, compared, load_config, of_another

    base, numbers = load_config(recipe, settings, trust, others=True), seed_settings(seeds, settings)
    listed, made = {row.method: row for row in compared(recipe)}, []
    for text in methods:
        row = listed.get(text, Compared(method=text))
        name, *changes = words_of(f"{text} {row.also}")
        if name in available("recipes") and compared(name):
            raise UserError(f"{name} is a comparison of several methods, and no method; write promptcl compare {name}")
        try:
            configs = [of_another(base, name, [*changes, *seed], own, trust, settings) for seed in numbers]
        except UserError as error:
            raise UserError(f"{text}: {error}") from error
        made.append(Entry(text, folder_of(text), configs, row.published))
    check_common([entry.configs[0] for entry in made], settings, base)
    return made


def words_of(text: str) -> list[str]:
    """A method and settings of its own. Raises UserError where there is no word, or a quote without its end."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words:
        raise UserError(f"{text!r}: expected a method, and settings in matching quotes, as 'coda method.length=8'")
    return words


def folder_of(method: str) -> str:
    """The name of the folder of a method's runs; one that is too long ends in a hash, or others would begin like it."""
    name = re.sub(r"[^\w.=,-]+", "-", method).strip("-.")
    return name if len(name) <= 100 else f"{name[:90]}-{hashlib.sha256(method.encode()).hexdigest()[:8]}"


def _page(folders: list[Path], out: Path) -> None:
    """Write the page about all runs, or say how to get it."""
    if not folders:
        return
    try:
        with extra("report", "matplotlib", "jinja2"):
            from promptcl.reports.report import write

            write(folders, out / "report.html")
            print(out / "report.html")
    except UserError as error:
        print(f"no page: {error}", file=sys.stderr)
