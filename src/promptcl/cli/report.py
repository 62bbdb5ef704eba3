"""The commands `report` (a page about runs) and `bench` (how fast this machine is). Heavy imports wait inside."""

from __future__ import annotations

import json
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
        from promptcl.reports.report import write
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
    from promptcl.experiments import speed as benchmark
    from promptcl.recipes import load_config

    config = load_config(recipe, overrides, trust)
    result = benchmark.run(config, engine, rounds, images, before)
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
