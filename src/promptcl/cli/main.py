"""The command `promptcl`: its subcommands, `list` and `--version`. Heavy imports wait inside the functions."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Annotated

import typer

from promptcl.cli import compare, learn, mend, predict, report, serve, train
from promptcl.cli.errors import fail, one_sentence
from promptcl.cli.system import check_memory, flush, heed_signals, ready_streams
from promptcl.runtime import processes

app = typer.Typer(
    name="promptcl",
    help="Prompt-based continual learning with a frozen pre-trained vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command `promptcl` with the arguments of this process."""
    ready_streams()
    heed_signals()
    try:
        app()
    finally:
        flush()


for command in (train, compare, learn, predict, mend, serve, report):
    app.add_typer(command.app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Print the version, and refuse several processes for anything but `train`."""
    if processes.wanted() > 1 and context.invoked_subcommand != "train":
        count = processes.wanted()
        fail(f"torchrun started {count} processes: only promptcl train has work for several; leave out torchrun")
    if context.invoked_subcommand not in (None, "list"):
        one_sentence(check_memory)()
    if version:
        from importlib.metadata import version as installed

        print(f"promptcl {installed('promptcl')}")
        raise typer.Exit


@app.command("list")
@one_sentence
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[recipes|methods|datasets|backbones]", help="What to list; default: all but backbones."
        ),
    ] = None,
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="With backbones: all whose name contains it.")
    ] = None,
) -> None:
    """Show the recipes, methods and data sets that come with promptcl, or the backbones that it can use."""
    from promptcl.recipes import available

    if word is not None and kind != "backbones":
        fail(f"{word}: only backbones are searched by a word; write promptcl list {kind}")

    # One line each where the output is not a terminal: programs read it.
    columns = max(50, shutil.get_terminal_size().columns) if sys.stdout.isatty() else sys.maxsize
    for title in [kind] if kind else ["recipes", "methods", "datasets"]:
        found = _backbones(word) if title == "backbones" else available(title)
        if kind is None:
            print(f"{title}:")
        width = max(map(len, found), default=0)
        for name, line in found.items():
            head = f"{'' if kind else '  '}{name:<{width}}  "
            print(textwrap.fill(head + line, columns, subsequent_indent=" " * len(head), break_on_hyphens=False))


def _backbones(word: str | None) -> dict[str, str]:
    from promptcl.backbone.catalogue import backbones  # imports torch

    return backbones(word)
