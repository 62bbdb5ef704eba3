"""Arguments and options that several commands have, and how to read them. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from promptcl.config import DataConfig
from promptcl.config.reading import READING, check_settings_of_answers, check_settings_of_learning
from promptcl.errors import UserError

DEFAULT = "grow"
"""Recipe of a new learner of the command `learn`."""

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE|PATH.yaml] [KEY=VALUE]...",
        help="A recipe of `promptcl list recipes` (default: demo) or a YAML file, then settings to change, "
        "such as train.epochs=1 seed=7.",
        show_default=False,
    ),
]


def split_arguments(arguments: list[str]) -> tuple[str, list[str]]:
    """Split arguments into the recipe or path (`demo` if none) and key=value settings.

    Raises UserError for a stray word.
    """
    recipe, settings = "demo", arguments
    if arguments and ("=" not in arguments[0] or os.path.isfile(arguments[0])):
        recipe, settings = arguments[0], arguments[1:]
    for text in settings:
        if "=" not in text:
            raise UserError(
                f"{text}: expected one recipe and then key=value settings; write e.g. promptcl train {recipe} seed=7"
            )
    return recipe, settings


@contextlib.contextmanager
def extra(name: str, *packages: str) -> Iterator[None]:
    """Turn the absence of an optional package into a UserError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in packages:
            raise
        raise UserError(f"{error.name} is not installed; write pip install 'promptcl[{name}]'") from None


Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the learner.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings, such as device=cpu eval.batch_size=8.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run a method or data set outside promptcl (NAME.py here, or a.module)."),
]


def data_of(settings: list[str] | None, learns: bool = False) -> DataConfig:
    """How images are read, among the settings: they are looked for before a learner is opened.

    Raises UserError for a setting that has no effect: on what is answered, or, with `learns`, on what is learned.
    """
    from promptcl.recipes import load_config

    if stray := next((text for text in settings or [] if "=" not in text), None):
        raise UserError(f"{stray}: expected one image, folder or archive, then settings such as device=cpu")
    (check_settings_of_learning if learns else check_settings_of_answers)(settings or [])
    given = [text for text in settings or [] if text.partition("=")[0].strip() in READING]
    return load_config(DEFAULT, given).data
