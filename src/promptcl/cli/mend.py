"""The commands that undo a learner's mistakes: forget, rename, undo, correct. Heavy imports wait inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcl.cli.errors import one_sentence, printable
from promptcl.cli.images import check_store, gather, images_and_settings, split_words, warn_of_twins
from promptcl.cli.options import Settings, Store, Trust, data_of
from promptcl.cli.terminal import count, note, some
from promptcl.errors import UserError

if TYPE_CHECKING:
    from promptcl.learner.learner import Learner
    from promptcl.learner.records import Correction
    from promptcl.store import ChangeRecord

app = typer.Typer()


@app.command()
@one_sentence
def forget(
    store: Store,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS... [KEY=VALUE]...", show_default=False)],
    trust: Trust = False,
) -> None:
    """Forget classes: the learner becomes what it would be had it never learned them."""
    check_store(store)
    from promptcl import store as stores
    from promptcl.data.names import one_spelling
    from promptcl.learner.learner import Learner

    with stores.lock(store):
        known = set(stores.load(store, trust=trust).classes)
        classes = [word if word in known else one_spelling(word) for word in classes]
        names, settings = split_words(classes, known.__contains__, "one or more classes")
        learner = Learner.load(store, settings, trust=trust)
        calibrated = "calibration" in learner.notes
        record = learner.forget(names)
        learner.save(store)
    print(described(record))
    _report(learner, store, calibrated)


@app.command()
@one_sentence
def rename(
    store: Store,
    old: Annotated[str, typer.Argument(metavar="OLD", show_default=False)],
    new: Annotated[str, typer.Argument(metavar="NEW", show_default=False)],
    settings: Settings = None,
    trust: Trust = False,
) -> None:
    """Give a class another name; where NEW is a class too, both become one."""
    check_store(store)
    from promptcl import store as stores
    from promptcl.data.names import one_spelling
    from promptcl.learner.learner import Learner

    new = one_spelling(new)
    with stores.lock(store):
        learner = Learner.load(store, settings or [], trust=trust)
        calibrated = "calibration" in learner.notes
        joined = new in learner.classes
        if not joined:
            warn_of_twins([new], [name for name in learner.classes if name != old], store, trust)
        record = learner.rename(old, new)
        learner.save(store)
    print(described(record) + (", which was a class too: both are one now" if joined else ""))
    _report(learner, store, calibrated)


@app.command()
@one_sentence
def undo(store: Store, settings: Settings = None, trust: Trust = False) -> None:
    """Take away the last task: the learner becomes what it was before."""
    check_store(store)
    from promptcl import store as stores
    from promptcl.learner.learner import Learner

    with stores.lock(store):
        learner = Learner.load(store, settings or [], trust=trust)
        calibrated = "calibration" in learner.notes
        last = learner.history[-1] if learner.history else None
        record = learner.undo()
        learner.save(store)
    assert last is not None
    print(f"{described(record)}, learned {printable(last.when)}: {some(list(last.images), 10)}")
    _report(learner, store, calibrated)


@app.command()
@one_sentence
def correct(
    store: Store,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|FOLDER... [KEY=VALUE]...", help="Images, folders of images, archives."),
    ],
    name: Annotated[str, typer.Option("--class", metavar="NAME", help="Their class, which may be new.")],
    trust: Trust = False,
) -> None:
    """Say which class images are of: those learned as another one move, those never learned are learned."""
    check_store(store)
    words, settings = images_and_settings(images)
    if "-" in words:
        raise UserError("correct reads no image from stdin; write the path of a file")
    from promptcl import store as stores
    from promptcl.data.names import one_spelling
    from promptcl.learner.learner import Learner

    found, _ = gather(words, data_of(settings, learns=True).cache_mb)
    with stores.lock(store):
        learner = Learner.load(store, settings, trust=trust)
        warn_of_twins(learner.new([one_spelling(name)]), learner.classes, store, trust)
        calibrated = "calibration" in learner.notes
        done = learner.correct(found, name)
        if done.moved or done.learned:
            learner.save(store)
    _report_correction(done)
    _report(learner, store, calibrated)


def _report_correction(done: Correction) -> None:
    name = printable(done.name)
    if done.moved:
        were = ", ".join(f"{number} from {other}" for other, number in done.were.items())
        print(f"moved {count(done.moved, 'image')} to {name} ({printable(were)})")
    if done.learned:
        print(f"learned {count(done.learned, 'image')} as {name}")
    for sentence in done.record.warnings if done.record is not None else []:
        note(sentence, kind="warning")
    if done.known:
        print(f"{count(done.known, 'image')} had been learned as {name} before: nothing to change")
    if done.gone:
        print(f"{printable(some(done.gone, 10))}: no image is left, so this is no class any more")


def _report(learner: Learner, store: Path, calibrated: bool) -> None:
    """Say what is left; calibrated: whether it was before the change."""
    if calibrated and "calibration" not in learner.notes:
        print("how sure it is has to be measured anew: no answer is `unknown` until it learns again")
    known = f": {printable(some(learner.classes, 10))}" if learner.classes else "; learn a folder of images"
    print(f"{store}: {count(len(learner.classes), 'class')}{known}")


def described(change: ChangeRecord) -> str:
    """What was changed, in a few words; also for the history that `info` shows."""
    names, images = printable(some(change.names, 10)), count(change.images, "image")
    if change.what == "forget":
        return f"forgot {names} ({images})"
    if change.what == "rename":
        return f"renamed {printable(change.names[0])} to {printable(change.names[-1])} ({images})"
    return f"undid {names} ({images})" if change.what == "undo" else f"moved {images} to {names}"
