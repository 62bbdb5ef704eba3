"""The commands `report` (a page about runs or a learner) and `bench` (how fast this machine is).

Heavy imports wait inside.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from promptcl.cli.errors import one_sentence
from promptcl.cli.options import Arguments, Json, Trust, extra, split_arguments
from promptcl.cli.terminal import table
from promptcl.errors import UserError

app = typer.Typer()


@app.command()
@one_sentence
def report(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...|STORE [KEY=VALUE]...",
            help="Folders of finished runs, or of train --seeds; or the folder of one learner, and settings.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="FOLDER", help="Of a learner: measure on FOLDER/CLASS/*.jpg, or an archive."),
    ] = None,
    zoom: Annotated[bool, typer.Option("--zoom", help="Of runs: axes only as long as the values need.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.html",
            help="The page.",
            show_default="RUN/report.html, STORE/report.html; report.html for several",
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write one self-contained HTML page about runs or about a learner, and its figures as PNGs beside it."""
    settings = [text for text in arguments if "=" in text and not os.path.exists(text)]
    paths = [Path(text) for text in arguments if text not in settings]
    store = _learner_among(paths)
    if store is None:
        if images is not None:
            raise UserError("--images measures a learner and these are runs; write e.g. RUN/learner --images FOLDER")
        if settings:
            raise UserError(f"{settings[0]}: a finished run has no settings to change; leave it out")
    elif zoom:
        raise UserError(f"--zoom is for runs and {store} is a learner, whose axes show all; leave it out")
    page = out or ((paths[0] if paths[0].is_dir() else paths[0].parent) if len(paths) == 1 else Path()) / "report.html"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of folders that it may not write to
    with extra("report", "matplotlib", "jinja2"):
        if store is None:
            from promptcl.reports.report import write

            count = write(paths, page, zoom)
        else:
            from promptcl.reports import learner

            count = learner.write(store, page, images, settings, trust)
    print(f"{page}: {count} figures, also as PNG in {page.with_name(page.stem + '-figures')}")


def _learner_among(paths: list[Path]) -> Path | None:
    """The folder of the learner that the page is about; None where all are runs. Raises UserError for anything else."""
    if not paths:
        raise UserError("a report is about runs or a learner; write the folder of one, then settings")
    stores = [path for path in paths if (path / "learner.json").exists() and not (path / "results.json").exists()]
    if stores and len(paths) > 1:
        raise UserError(f"{stores[0]} is a learner and there are other folders; write one learner, or runs only")
    return stores[0] if stores else None


@app.command()
@one_sentence
def bench(
    arguments: Arguments = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="plain|FILE.py", help="Compare with it, in the same run.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Measurements of everything, in turn.")] = 5,
    images: Annotated[int, typer.Option("--images", help="Images to learn and to test with.")] = 128,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Images per second of a recipe's first task, its stages, memory, and the share of what this machine can do."""
    for name, number in (("--rounds", rounds), ("--images", images)):
        if number < 1:
            raise UserError(f"{name} {number}: expected a whole number, at least 1")
    recipe, overrides = split_arguments(arguments or [])
    import torch  # noqa: F401 - the memory it takes is not ours; what timm and torchvision take is

    from promptcl.runtime.provenance import resident_peak

    before = resident_peak()
    from rich.console import Console

    from promptcl.experiments import speed as benchmark
    from promptcl.recipes import load_config

    config = load_config(recipe, overrides, trust)
    with Console(stderr=True).status("loading") as status:  # shown in a terminal only
        result = benchmark.run(config, engine, rounds, images, before, status.update)
    print(json.dumps(result, indent=1) if as_json else "\n".join(lines(result)))


def lines(result: dict[str, Any]) -> list[str]:
    """Lines for a terminal of 80 columns that show the result of a benchmark."""
    rows = [(name.replace("_", " "), _rate(result[name])) for name in ("train", "evaluate", "evaluate_again")]
    stages = result.get("stages_seconds", {})
    whole = sum(stages.values())
    rows += [(f"  {name}", f"{1000 * s:.1f} ms a batch, {100 * s / whole:.0f} %") for name, s in stages.items()]
    if stages:
        rows.append(
            ("arithmetic", f"{result['gflop_per_image']:.2f} GFLOP a training image, {result['gflops']:.0f} GFLOP/s")
        )
        rows.append(
            (
                "of the peak",
                f"{100 * result['share_of_peak']:.0f} % of {result['peak_gflops']:.0f} GFLOP/s (matrix product)",
            )
        )
    alone = [f"{one['images_per_second']:.0f}" for one in result["input"]["workers"].values()]
    numbers = ", ".join(result["input"]["workers"])
    rows.append(("input alone", f"{', '.join(alone)} images/s with {numbers} workers"))
    if result["memory_bytes"] is not None:
        rows.append(("memory", f"{result['memory_bytes'] / 1e9:.2f} GB at most, beyond Python with torch"))
    if result["first_step_seconds"] is not None:
        rows.append(("first step", f"{result['first_step_seconds']:.1f} s after the start of the command"))
    if other := result.get("engine"):
        for name in ("train", "evaluate", "evaluate_again"):
            r = other[name]
            text = f"{r['median']:.2f} times the speed of {other['name']} ({r['lowest']:.2f} to {r['highest']:.2f})"
            rows.append((name.replace("_", " "), text))
    return table(rows)


def _rate(speed: dict[str, Any]) -> str:
    return f"{speed['images_per_second']:.1f} images/s ({speed['lowest']:.1f} to {speed['highest']:.1f})"
