"""The verbs of a learner that lives on: learn, predict, evaluate, info, export. Heavy imports wait inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptcl.bars import bars, table
from promptcl.errors import UserError
from promptcl.shell import one_sentence

if TYPE_CHECKING:
    from promptcl.answers import Evaluation
    from promptcl.data import ImageSet
    from promptcl.learner import Learner

app = typer.Typer()
DEFAULT = "grow"

Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the learner.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=1 device=cpu.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run a method outside promptcl (a dotted name): its code runs.")]


@app.command()
@one_sentence
def learn(
    store: Store,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="FOLDER/CLASS/*.jpg, or an archive of that.")],
    settings: Settings = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe of a new learner.", show_default=DEFAULT)
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FOLDER", help="Test pictures: accuracy before and after.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", metavar="POINTS", help="With --check: keep nothing if old classes lose more."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bars.")] = False,
    trust: Trust = False,
) -> None:
    """Teach the learner in STORE the classes in FOLDER; STORE is made if need be. Known classes get more training."""
    if max_drop is not None and check is None:
        raise UserError("--max-drop needs pictures to check with; write --check FOLDER too")
    from promptcl import store as stores
    from promptcl.checkpoint import discard
    from promptcl.pictures import labelled

    budget = _cache_mb(settings)
    images = labelled(folder, cache_mb=budget)
    tests = None if check is None else labelled(check, cache_mb=budget)
    with stores.lock(store):
        learner = _open_or_make(store, settings or [], recipe, trust)
        old = list(learner.classes)
        before = _check(learner, tests, old)
        kept = learner.calibration  # of what is in the store
        with _progress(learner.steps(len(images)), quiet) as step:
            record = learner.learn(images, step, folder.name, store)
        after = _check(learner, tests, learner.classes)
        if before is not None and after is not None and max_drop is not None:
            drop = before.accuracy - _accuracy(after, before)
            if drop > max_drop:
                discard(store)
                raise UserError(
                    f"the old classes lost {drop:.1f} points on {check}, more than --max-drop {max_drop:g}: "
                    "nothing was kept; give more pictures, or a larger --max-drop"
                )
        learner.save(store)
    new = [name for name in learner.classes if name not in old]
    print(f"learned {len(images)} pictures: {len(new)} new classes, {len(images.classes) - len(new)} known ones")
    if record.held_out and not quiet:
        print("held-out pictures answered right, before these were learned too:")
        print(*bars(record.held_out), sep="\n")
    if after is not None:
        if before is not None:
            print(f"old classes on {check}: {before.accuracy:.1f} % before, {_accuracy(after, before):.1f} % after")
        print(f"all classes on {check}: {after.accuracy:.1f} %")
        if not quiet:
            print(*bars(after.by_class, before.by_class if before is not None else None), sep="\n")
    if learner.calibration != kept and not quiet:
        print(f"answers below {learner.calibration.threshold:.2f} are `unknown`")
    print(f"{store}: {len(learner.classes)} classes")


@app.command()
@one_sentence
def predict(
    store: Store,
    picture: Annotated[str, typer.Argument(metavar="IMAGE|FOLDER|-", help="`-` reads one picture from stdin.")],
    settings: Settings = None,
    top: Annotated[int, typer.Option("--top", metavar="K", help="Show the K most probable classes.", min=1)] = 1,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="Less probable answers are `unknown`; 0: none is.",
            show_default="calibrated",
            min=0,
            max=1,
        ),
    ] = None,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Name the class of a picture, or of every picture below a folder."""
    from promptcl.learner import Learner
    from promptcl.pictures import unlabelled

    images = unlabelled(sys.stdin.buffer.read() if picture == "-" else picture, _cache_mb(settings))
    names = ["-"] if picture == "-" else [images.name(i) for i in range(len(images))]
    found = Learner.load(store, settings or [], trust=trust).predict(images, top, threshold)
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "image": name,
                "label": answer.label,
                "probability": answer.probability,
                "top": [{"label": label, "probability": p} for label, p in answer.top],
            }
            for name, answer in zip(names, found, strict=True)
        ]
        print(json.dumps(rows, indent=1))
        return
    for name, answer in zip(names, found, strict=True):
        more = ", ".join(f"{label} {100 * p:.1f} %" for label, p in answer.top)
        detail = f"  ({more})" if top > 1 or answer.label != answer.top[0][0] else f"  {100 * answer.probability:.1f} %"
        print(f"{name}: {answer.label}{detail}")


@app.command()
@one_sentence
def evaluate(
    store: Store,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="FOLDER/CLASS/*.jpg, or an archive of that.")],
    settings: Settings = None,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Accuracy on the pictures in FOLDER, every learned class competing."""
    from promptcl.learner import Learner
    from promptcl.pictures import labelled

    images = labelled(folder, cache_mb=_cache_mb(settings))
    result = Learner.load(store, settings or [], trust=trust).evaluate(images)
    if as_json:
        classes = {name: {"right": right, "images": n} for name, (right, n) in result.by_class.items()}
        print(json.dumps({"accuracy": result.accuracy, "images": result.images, "classes": classes}, indent=1))
        return
    print(*bars(result.by_class), sep="\n")
    print(f"{result.accuracy:.1f} % of {result.images} pictures")


@app.command()
@one_sentence
def info(store: Store, as_json: Json = False, trust: Trust = False) -> None:
    """What the learner in STORE knows, and what it learned when from how many pictures."""
    from promptcl import store as stores
    from promptcl.calibration import Calibration

    saved = stores.load(store, trust=trust)
    size = sum(file.stat().st_size for file in store.iterdir() if file.is_file())
    tasks = [task.model_dump(mode="json") for task in saved.tasks]
    calibration = Calibration.of(saved.notes).model_dump() if "calibration" in saved.notes else None
    if as_json:
        about = {"classes": saved.classes, "tasks": tasks, "backbone": saved.backbone, "bytes": size}
        print(
            json.dumps({**about, "calibration": calibration, "config": saved.config.model_dump(mode="json")}, indent=1)
        )
        return
    known = {key: ascii(saved.backbone.get(key))[1:-1] for key in ("name", "weights", "sha256")}
    backbone = f"{known['name']} ({known['weights']}, sha256 {known['sha256'][:12]})"
    rows = [
        ("classes", f"{len(saved.classes)}: {', '.join(saved.classes)}"),
        ("method", str(saved.config.method["name"])),
        ("backbone", backbone),
        ("size", f"{size / 1e6:.2f} MB without the backbone"),
    ]
    if calibration:
        rows.append(("unknown", f"below probability {calibration['threshold']:.2f}"))
    print(*table(rows), sep="\n")
    for task in saved.tasks:
        counts = ", ".join(f"{name} {count}" for name, count in task.images.items())
        print(f"{task.when}  {task.name}: {sum(task.images.values())} pictures in {task.seconds:.0f} s ({counts})")


@app.command()
@one_sentence
def export(
    store: Store,
    file: Annotated[Path, typer.Argument(metavar="MODEL.pt2|MODEL.onnx", help="A .json is written beside it.")],
    settings: Settings = None,
    trust: Trust = False,
) -> None:
    """Write the learner as one program, backbone included, that runs without promptcl: images in, probabilities out."""
    from promptcl.export import export as write
    from promptcl.learner import Learner

    about = write(Learner.load(store, settings or [], trust=trust), file)
    print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB) and {about}")


def _cache_mb(settings: list[str] | None) -> int:
    """data.cache_mb as given: pictures are looked for before a learner is opened or made."""
    from promptcl.recipes import load_config

    given = [text for text in settings or [] if text.partition("=")[0].strip() == "data.cache_mb"]
    return load_config(DEFAULT, given).data.cache_mb


def _open_or_make(store: Path, settings: list[str], recipe: str | None, trust: bool) -> Learner:
    from promptcl import store as stores
    from promptcl.learner import Learner
    from promptcl.recipes import load_config

    if stores.checksum(store) is None:
        learner = Learner(load_config(recipe or DEFAULT, settings, trust))
        learner.save(store)  # so that what is interrupted goes on from here
        return learner
    saved = stores.load(store, trust=trust)
    if saved.classes:
        if recipe is not None:
            raise UserError(
                f"{store} keeps the recipe that it was made with; leave out --recipe, or write another STORE"
            )
        return Learner.load(store, settings, trust=trust)
    again = recipe or settings
    if again and stores.movable(Learner(load_config(recipe or DEFAULT, settings, trust)).config) != saved.config:
        raise UserError(f"{store} was begun with other settings and has learned nothing; delete it, or repeat those")
    return Learner.load(store, trust=trust)


def _check(learner: Learner, tests: ImageSet | None, classes: list[str]) -> Evaluation | None:
    """Accuracy on those of the test pictures whose classes are among `classes`; None where there are none."""
    if tests is None or not (known := [name for name in tests.classes if name in classes]):
        return None
    return learner.evaluate(tests.of_classes(known))


def _accuracy(after: Evaluation, before: Evaluation) -> float:
    """Percent, `after`, on the pictures that `before` was measured on."""
    return 100 * sum(after.by_class[name][0] for name in before.by_class) / before.images


class _progress:
    """A bar of optimiser steps on a terminal, nothing elsewhere."""

    def __init__(self, steps: int, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=quiet or not steps or not console.is_terminal)
        self._task = self._bar.add_task("learning", total=steps)

    def __enter__(self) -> Any:
        self._bar.start()
        return lambda: self._bar.advance(self._task)

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
