"""The command `promptcl`: parse, call, print; no logic. Heavy imports wait inside the functions."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcl import ranks, teach, verbs
from promptcl.errors import UserError
from promptcl.shell import fail, one_sentence

if TYPE_CHECKING:
    from promptcl.config import Config
    from promptcl.ui import Ui

app = typer.Typer(
    name="promptcl",
    help="Prompt-based continual learning with a frozen pre-trained vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE|PATH.yaml] [KEY=VALUE]...",
        help="A recipe of `promptcl list recipes` (default: demo) or a YAML file, then settings to change, "
        "such as train.epochs=1 seed=7.",
        show_default=False,
    ),
]


def main() -> None:
    """Entry point of the `promptcl` script."""
    app()


app.add_typer(teach.app)
app.add_typer(verbs.app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options of the command itself."""
    if ranks.wanted() > 1 and context.invoked_subcommand != "train":
        fail(
            f"torchrun started {ranks.wanted()} processes: only promptcl train has work for several; leave out torchrun"
        )
    if version:
        from importlib.metadata import version as installed

        print(f"promptcl {installed('promptcl')}")
        raise typer.Exit


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
    trust: verbs.Trust = False,
) -> None:
    """Learn a recipe's tasks one after the other, evaluate after each, write results.json.

    With torchrun --nproc-per-node N -m promptcl train ..., N processes do it together.
    """
    with ranks.group():
        if resume is not None:
            given = [*(arguments or []), *(["--seeds"] if seeds else []), *(["--out"] if out else [])]
            ranks.on_first(lambda: check_resume(resume, given))
            arguments = [str(resume / "config.yaml")]
        recipe, overrides = split_arguments(arguments or [])
        if out is not None:
            ranks.on_first(lambda: check_out(out))
        from promptcl.recipes import load_config

        configs = [load_config(recipe, overrides + one, trust) for one in seed_settings(seeds, overrides)]
        seed = None if seeds else configs[0].seed
        folder = ranks.on_first(lambda: resume or out or free_folder(recipe, seed))
        again = ["--resume"] if seeds is None else [*(arguments or []), "--seeds", seeds, "--out"]
        run(configs, folder, again, resume=resume is not None, quiet=quiet, tensorboard=tensorboard)


def run(configs: list[Config], folder: Path, again: list[str], resume: bool, quiet: bool, tensorboard: bool) -> None:
    """Run the configs, one a seed, into `folder`; the first process alone shows it, and after Ctrl-C how to go on."""
    from promptcl.ui import QuietUi, RichUi

    shown: list[QuietUi | RichUi] = []

    def make_ui(folder: Path) -> Ui:
        if ranks.rank():
            return QuietUi(folder, write=lambda line: None)
        shown.append(QuietUi(folder) if quiet else RichUi(folder))
        return with_events(shown[-1], folder) if tensorboard else shown[-1]

    if tensorboard:
        with extra("tensorboard", "tensorboard"):
            from promptcl.events import with_events
    try:
        if "--seeds" not in again:
            from promptcl import experiment

            experiment.run(configs[0], folder, make_ui(folder), resume)
        else:
            from promptcl import seeds as repeat

            summary = repeat.run(configs, folder, make_ui)
            if not ranks.rank():
                print(f"{repeat.describe(summary)} summary {folder / 'summary.json'}")
    except KeyboardInterrupt:
        for ui in shown:
            ui.close()
        if not ranks.rank() and next(folder.rglob("config.yaml"), None) is not None:  # something was begun
            print(f"go on with: promptcl train {shlex.join([*again, str(folder)])}", file=sys.stderr)
        raise
    finally:
        for ui in shown:
            ui.close()


@app.command()
@one_sentence
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs, or of train --seeds.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.html", help="The page.", show_default="RUN/report.html; report.html for several"
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page about runs, and its figures as PNGs beside it."""
    with extra("report", "matplotlib", "jinja2"):
        from promptcl.report import write
    page = out or ((runs[0] if runs[0].is_dir() else runs[0].parent) if len(runs) == 1 else Path()) / "report.html"
    print(f"{page}: {write(runs, page)} figures, also as PNG in {page.with_name(page.stem + '-figures')}")


@app.command()
@one_sentence
def bench(
    arguments: Arguments = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="plain|FILE.py", help="Compare with it, in the same run.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Measurements of everything, in turn.")] = 5,
    images: Annotated[int, typer.Option("--images", help="Images to learn and to test with.")] = 128,
    as_json: verbs.Json = False,
    trust: verbs.Trust = False,
) -> None:
    """Images per second of a recipe's first task, its parts, memory, and the share of what this machine can do."""
    for name, number in (("--rounds", rounds), ("--images", images)):
        if number < 1:
            raise UserError(f"{name} {number}: expected a whole number, at least 1")
    recipe, overrides = split_arguments(arguments or [])
    import torch  # noqa: F401 - the memory it takes is not ours; what timm and torchvision take is

    from promptcl.machine import resident_peak

    before = resident_peak()
    from promptcl import bench as benchmark
    from promptcl.recipes import load_config

    config = load_config(recipe, overrides, trust)

    result = benchmark.run(config, engine, rounds, images, before)
    print(json.dumps(result, indent=1) if as_json else "\n".join(benchmark.lines(result)))


@app.command("list")
@one_sentence
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[recipes|methods|datasets]", help="What to list; default: all.")
    ] = None,
) -> None:
    """Show the recipes, methods and data sets that exist."""
    from promptcl.recipes import available

    # A line each for programs; no narrower than there is room for beside the names.
    columns = max(50, shutil.get_terminal_size().columns) if sys.stdout.isatty() else sys.maxsize
    for title in [kind] if kind else ["recipes", "methods", "datasets"]:
        found = available(title)
        if kind is None:
            print(f"{title}:")
        width = max(map(len, found), default=0)
        for name, line in found.items():
            head = f"{'' if kind else '  '}{name:<{width}}  "
            print(textwrap.fill(head + line, columns, subsequent_indent=" " * len(head), break_on_hyphens=False))


def split_arguments(arguments: list[str]) -> tuple[str, list[str]]:
    """Recipe (or path) and key=value settings; without a recipe, `demo`. Raises UserError for a stray word."""
    recipe, settings = "demo", arguments
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).is_file()):
        recipe, settings = arguments[0], arguments[1:]
    for text in settings:
        if "=" not in text:
            raise UserError(
                f"{text}: expected one recipe and then key=value settings; write e.g. promptcl train {recipe} seed=7"
            )
    return recipe, settings


def seed_settings(seeds: str | None, overrides: list[str]) -> list[list[str]]:
    """The further settings of each run. Raises UserError for a bad list."""
    if seeds is None:
        return [[]]
    numbers = seeds.split(",")
    if not all(re.fullmatch(r"[0-9]+", number) for number in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise UserError(f"--seeds {seeds}: expected different whole numbers with commas; write e.g. --seeds 1,2,3")
    given = [text for text in overrides if text.split("=")[0].strip() == "seed"]
    if given:
        raise UserError(f"{given[0]} and --seeds {seeds}: expected one of the two; leave out {given[0]}")
    return [[f"seed={int(number)}"] for number in numbers]


@contextlib.contextmanager
def extra(name: str, *packages: str) -> Iterator[None]:
    """Turn the absence of an optional package into a UserError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in packages:
            raise
        raise UserError(f"{error.name} is not installed; write pip install 'promptcl[{name}]'") from None


def check_out(out: Path) -> None:
    """Raise UserError if `out` cannot be the folder of a new run."""
    if (out / "results.json").exists():
        raise UserError(f"--out {out}: it already holds results.json; write another folder, or delete that file first")
    if (out / "learner" / "learner.json").exists():
        raise UserError(
            f"--out {out}: a run was interrupted there; write promptcl train --resume {out}, or another folder"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: it is a file; write the path of a folder")


def check_resume(folder: Path, given: list[str]) -> None:
    """Raise UserError if there is no run in `folder`, or something is `given` that it cannot take any more."""
    if given:
        raise UserError(
            f"{given[0]}: a run goes on with the settings it began with; write promptcl train --resume {folder}"
        )
    if list(folder.glob("seed*/config.yaml")):
        raise UserError(
            f"--resume {folder}: it is the folder of --seeds; repeat the line it began with, and --out {folder}"
        )
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--resume {folder}: expected the folder of an interrupted run, there is no config.yaml in it")


def free_folder(recipe: str, seed: int | None) -> Path:
    """runs/<recipe>-seed<seed> (-seeds for several), with -2, -3, ... if that exists."""
    path = Path(recipe)
    # A run is repeated from its own config.yaml: its folder has the telling name.
    name = path.resolve().parent.name if path.name == "config.yaml" else path.stem
    name = re.sub(r"-seed\d+(-\d+)?$", "", name)
    folder = first = Path("runs") / f"{name}-seed{'s' if seed is None else seed}"
    number = 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder
