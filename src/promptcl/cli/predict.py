"""The commands that use a learner: predict, evaluate, info, export. Heavy imports wait inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcl.cli.errors import fail, one_sentence, printable
from promptcl.cli.images import check_folders, check_store, gather, images_and_settings, said
from promptcl.cli.mend import described
from promptcl.cli.options import Json, Settings, Store, Trust, data_of
from promptcl.cli.terminal import bars, count, note, table, unknown_below
from promptcl.config.reading import check_settings_of_answers
from promptcl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from promptcl.learner.records import Prediction
    from promptcl.store import Saved

app = typer.Typer()
_LARGE = 10_000_000  # bytes of a store from which on it is said what takes them


@app.command()
@one_sentence
def predict(
    store: Store,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER|-... [KEY=VALUE]...",
            help="Images, folders, archives; `-` reads one image from stdin. Then settings, such as device=cpu.",
        ),
    ],
    top: Annotated[int, typer.Option("--top", metavar="K", help="Show the K most probable classes.")] = 1,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="0..1",
            help="Less probable answers are `unknown`; 0: none is.",
            show_default="calibrated",
        ),
    ] = None,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Name the class of each image, also below folders and in archives; what cannot be read is said at the end."""
    if top < 1:
        raise UserError(f"--top {top}: expected how many classes to show, at least 1")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: expected a probability from 0 to 1, such as 0.5")
    check_store(store)
    words, settings = images_and_settings(images)
    from promptcl.data.checked import remarks_on, unreadable
    from promptcl.learner.learner import Learner

    reading = data_of(settings)
    found, names = gather(words, reading.cache_mb)
    learner = Learner.load(store, settings, trust=trust)
    bad = unreadable(learner.as_learned(found), reading)
    for sentence in remarks_on(found):
        note(sentence)
    good = [i for i in range(len(found)) if i not in bad]
    answers = dict(zip(good, learner.predict(found.select(good), top, threshold) if good else [], strict=True))
    if as_json:
        print(_json(names, answers, bad))
    else:
        for i, answer in answers.items():
            print(f"{printable(names[i])}: {_answer(answer, top)}")
    for sentence in list(bad.values())[:-1]:
        print(f"error: {printable(sentence)}", file=sys.stderr)
    if bad:
        fail(list(bad.values())[-1])


def _json(names: list[str], answers: dict[int, Prediction], bad: dict[int, str]) -> str:
    """A JSON object for each image, in the order of the images."""
    from promptcl.learner.records import answer_row

    return json.dumps([answer_row(name, answers.get(i), bad.get(i)) for i, name in enumerate(names)], indent=1)


def _answer(answer: Prediction, top: int) -> str:
    """The line of one image: its class, and the most probable ones where they say more."""
    if top == 1 and answer.label == answer.top[0][0]:
        return f"{answer.label}  {100 * answer.probability:.1f} %"
    return f"{answer.label}  ({', '.join(f'{label} {100 * p:.1f} %' for label, p in answer.top)})"


@app.command()
@one_sentence
def evaluate(
    store: Store,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="FOLDER/CLASS/*.jpg, or an archive of that.")],
    settings: Settings = None,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Accuracy on the images in FOLDER, every learned class competing."""
    check_store(store)
    check_folders(folder)
    from promptcl.data import labelled
    from promptcl.data.checked import remarks_on
    from promptcl.learner.learner import Learner

    images = said(labelled(folder, cache_mb=data_of(settings).cache_mb))
    result = Learner.load(store, settings or [], trust=trust).evaluate(images)
    for sentence in remarks_on(images):
        note(sentence)
    for sentence in result.warnings:
        note(sentence, kind="warning")
    if as_json:
        classes = {name: {"right": right, "images": n} for name, (right, n) in result.by_class.items()}
        print(json.dumps({"accuracy": result.accuracy, "images": result.images, "classes": classes}, indent=1))
        return
    print(*bars(result.by_class), sep="\n")
    print(f"{result.accuracy:.1f} % of {result.images} images")


@app.command()
@one_sentence
def info(store: Store, as_json: Json = False, trust: Trust = False) -> None:
    """What the learner in STORE knows, and when it learned what from how many images."""
    check_store(store)
    from promptcl import store as stores
    from promptcl.learner.calibration import Calibration
    from promptcl.store.checkpoint import interrupted

    saved = stores.load(store, trust=trust)
    files = [store / "learner.json", *store.glob("state-*.safetensors")]  # a report or weights may lie beside them
    size = sum(file.stat().st_size for file in files)
    tasks = [task.model_dump(mode="json") for task in saved.tasks]
    changes = [change.model_dump(mode="json") for change in saved.changes]
    calibration = Calibration.of(saved.notes).model_dump() if "calibration" in saved.notes else None
    if as_json:
        about = {"classes": saved.classes, "tasks": tasks, "changes": changes, "backbone": saved.backbone}
        about |= {"bytes": size, "calibration": calibration, "config": saved.config.model_dump(mode="json")}
        print(json.dumps(about, indent=1))
        return
    known = {key: ascii(saved.backbone.get(key))[1:-1] for key in ("name", "weights", "sha256")}
    backbone = f"{known['name']} ({known['weights']}, sha256 {known['sha256'][:12]})"
    rows = [
        ("classes", f"{len(saved.classes)}: {', '.join(saved.classes)}" if saved.classes else "none yet"),
        ("method", str(saved.config.method["name"])),
        ("backbone", backbone),
        ("size", f"{size / 1e6:.2f} MB without the backbone"),
    ]
    if calibration:
        rows.append(("unknown", unknown_below(calibration["threshold"], calibration["images"])))
    if size > _LARGE:
        rows.append(("of that", _largest(saved.state)))
    print(*table(rows), sep="\n")
    if interrupted(store):
        print("a task was interrupted: repeat its `promptcl learn` line to go on")
    print(*_story(saved), sep="\n")


def _story(saved: Saved) -> list[str]:
    """A line for each task and each change, in the order of time."""
    lines = []
    for task in saved.tasks:
        counts = ", ".join(f"{name} {number}" for name, number in task.images.items())
        what = f"{count(sum(task.images.values()), 'image')} in {task.seconds:.0f} s ({counts})"
        lines.append((task.when, f"{task.name}: {what}"))
    lines += [(change.when, described(change)) for change in saved.changes]
    return [f"{printable(when)}  {printable(text)}" for when, text in sorted(lines, key=lambda line: line[0])]


def _largest(state: dict[str, Tensor]) -> str:
    """The parts of what was learned that take most of the space."""
    parts: dict[str, int] = {}
    for name, tensor in state.items():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + tensor.nbytes
    most = sorted(parts.items(), key=lambda one: -one[1])[:3]
    return ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in most)


@app.command()
@one_sentence
def export(
    store: Store,
    file: Annotated[Path, typer.Argument(metavar="MODEL.pt2|MODEL.onnx", help="A .json is written beside it.")],
    settings: Settings = None,
    trust: Trust = False,
) -> None:
    """Write the learner as one program, backbone included, that runs without promptcl: images in, probabilities out."""
    check_store(store)
    check_settings_of_answers(settings or [])
    from promptcl.learner.export import export as write
    from promptcl.learner.learner import Learner

    about = write(Learner.load(store, settings or [], trust=trust), file)
    print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB) and {about}")
