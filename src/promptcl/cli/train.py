"""The command `train`: learn a recipe's tasks one after the other. Heavy imports wait inside."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcl.cli.errors import one_sentence
from promptcl.cli.options import Arguments, Trust, extra, split_arguments
from promptcl.errors import UserError
from promptcl.runtime import processes

if TYPE_CHECKING:
    from promptcl.config import Config
    from promptcl.experiments.progress import Ui

app = typer.Typer()


@app.command()
@one_sentence
def train(
    arguments: Arguments = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results.", show_default="runs/RECIPE-seedSEED")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="One plain line a task, for logs.")] = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="1,2,3",
            help="A run for each seed, in OUT/seed1, ..., and a summary. Interrupted: repeat the line with --out OUT.",
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with the interrupted run in DIR, as it began.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Learn a recipe's tasks one after the other, evaluate after each, write results.json.

    With torchrun --nproc-per-node N -m promptcl train ..., N processes do it together.
    """
    with processes.group():
        if resume is not None:
            given = [*(arguments or []), *(["--seeds"] if seeds else []), *(["--out"] if out else [])]
            processes.on_first(lambda: check_resume(resume, given, trust))
            arguments = [str(resume / "config.yaml")]
        recipe, overrides = split_arguments(arguments or [])
        if out is not None:
            processes.on_first(lambda: check_out(out, trust))
        from promptcl.recipes import load_config

        configs = [load_config(recipe, overrides + one, trust) for one in seed_settings(seeds, overrides)]
        seed = None if seeds else configs[0].seed
        folder = processes.on_first(lambda: resume or out or claim_folder(recipe, seed))
        flags = [flag for flag, given in (("--tensorboard", tensorboard), ("--trust", trust)) if given]
        again = [*flags, "--resume"] if seeds is None else [*(arguments or []), "--seeds", seeds, *flags, "--out"]
        try:
            run(configs, folder, again, resume=resume is not None, quiet=quiet, tensorboard=tensorboard)
        finally:
            if not (resume or out or processes.rank()):
                with contextlib.suppress(OSError):  # it stays where something was written
                    folder.rmdir()
                    folder.parent.rmdir()


def run(configs: list[Config], folder: Path, again: list[str], resume: bool, quiet: bool, tensorboard: bool) -> None:
    """Run the configurations, one for each seed, into `folder`.

    The first process alone shows progress; after Ctrl-C it prints `again`, the arguments that go on.
    """
    from promptcl.experiments.progress import QuietUi, RichUi

    shown: list[QuietUi | RichUi] = []

    def make_ui(folder: Path) -> Ui:
        if processes.rank():
            return QuietUi(folder, write=lambda line: None)
        shown.append(QuietUi(folder) if quiet else RichUi(folder))
        return with_events(shown[-1], folder) if tensorboard else shown[-1]

    if tensorboard:
        with extra("tensorboard", "tensorboard"):
            from promptcl.experiments.tensorboard import with_events
    try:
        if "--seeds" not in again:
            from promptcl.experiments import run as experiment

            experiment.run(configs[0], folder, make_ui(folder), resume)
        else:
            from promptcl.experiments import seeds as repeat

            summary = repeat.run(configs, folder, make_ui)
            if not processes.rank():
                print(f"{repeat.describe(summary)} summary {folder / 'summary.json'}")
    except KeyboardInterrupt:
        for ui in shown:
            ui.close()
        if not processes.rank() and next(folder.rglob("config.yaml"), None) is not None:  # something was begun
            print(f"go on with: promptcl train {shlex.join([*again, str(folder)])}", file=sys.stderr)
        raise
    finally:
        for ui in shown:
            ui.close()


def seed_settings(seeds: str | None, overrides: list[str]) -> list[list[str]]:
    """The settings that each run of --seeds has beside the common ones. Raises UserError for a bad list."""
    if seeds is None:
        return [[]]
    numbers = seeds.split(",")
    if not all(re.fullmatch(r"[0-9]+", number) for number in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise UserError(f"--seeds {seeds}: expected different whole numbers with commas; write e.g. --seeds 1,2,3")
    given = [text for text in overrides if text.split("=")[0].strip() == "seed"]
    if given:
        raise UserError(f"{given[0]} and --seeds {seeds}: expected one of the two; leave out {given[0]}")
    return [[f"seed={int(number)}"] for number in numbers]


def resumed(folder: Path, trust: bool) -> str:
    """The line that goes on with the run in `folder`."""
    return shlex.join(["promptcl", "train", *(["--trust"] if trust else []), "--resume", str(folder)])


def check_out(out: Path, trust: bool) -> None:
    """Raise UserError if `out` cannot be the folder of a new run."""
    if (out / "results.json").exists():
        raise UserError(f"--out {out}: it already holds results.json; write another folder, or delete that file first")
    if (out / "learner" / "learner.json").exists():
        raise UserError(f"--out {out}: a run was interrupted there; write {resumed(out, trust)}, or another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: it is a file; write the path of a folder")


def check_resume(folder: Path, given: list[str], trust: bool) -> None:
    """Raise UserError if there is no run in `folder`, or something is `given` that it cannot take any more."""
    if given:
        raise UserError(f"{given[0]}: a run goes on with the settings it began with; write {resumed(folder, trust)}")
    if list(folder.glob("seed*/config.yaml")):
        raise UserError(
            f"--resume {folder}: it is the folder of --seeds; repeat the line it began with, and --out {folder}"
        )
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--resume {folder}: expected the folder of an interrupted run, there is no config.yaml in it")


def claim_folder(recipe: str, seed: int | None) -> Path:
    """Make a new folder: runs/RECIPE-seedSEED (-seeds for several), with -2, -3, ... where that is taken."""
    path = Path(recipe)
    # A run is repeated from its own config.yaml: its folder has the telling name.
    name = path.resolve().parent.name if path.name == "config.yaml" else path.stem
    name = re.sub(r"-seed\d+(-\d+)?$", "", name)
    first = Path("runs") / f"{name}-seed{'s' if seed is None else seed}"
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            folder.mkdir(parents=True)  # of two processes that look for one, one gets it
            break
        except FileExistsError:
            if not os.path.lexists(folder):  # `runs` is in the way
                raise
    return folder
