"""The command `learn`: one task from a folder of images, checked before it is kept. Heavy imports wait inside."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcl.cli.check import Check
from promptcl.cli.errors import one_sentence
from promptcl.cli.images import check_folders, said, warn_of_twins
from promptcl.cli.options import DEFAULT, Settings, Store, Trust, data_of
from promptcl.cli.terminal import bars, count, note, some, unknown_below
from promptcl.config.extensions import needs_trust
from promptcl.errors import UserError

if TYPE_CHECKING:
    from promptcl.config import DataConfig
    from promptcl.data import ImageSet
    from promptcl.learner.learner import Learner
    from promptcl.learner.records import LearnRecord

app = typer.Typer()

FEW = 5
"""With fewer images than this a class is worth a word, if others have more."""


@app.command()
@one_sentence
def learn(
    store: Store,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="FOLDER/CLASS/*.jpg, or an archive of that.")],
    settings: Settings = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Recipe of a new learner (promptcl list recipes).", show_default=DEFAULT),
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FOLDER", help="Test images: accuracy before and after.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", metavar="POINTS", help="With --check: keep nothing if old classes lose more."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Learn images that were learned before once more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bars; what is left out is said.")] = False,
    trust: Trust = False,
) -> None:
    """Learn the classes in FOLDER; STORE is made if need be. Known classes learn the new images too."""
    if max_drop is not None and check is None:
        raise UserError("--max-drop needs images to check with; write --check FOLDER too")
    if max_drop is not None and max_drop < 0:
        raise UserError(f"--max-drop {max_drop:g}: expected the points that may be lost, 0 or more")
    check_folders(folder, check)
    from promptcl import store as stores
    from promptcl.data import labelled
    from promptcl.learner.sifting import distinct

    reading = data_of(settings, learns=True)
    images = said(labelled(folder, cache_mb=reading.cache_mb))
    tests = None if check is None else said(labelled(check, cache_mb=reading.cache_mb))
    if stores.checksum(store) is None:
        _read([images, *([] if tests is None else [tests])], reading, quiet)
    images, twice = distinct(images)
    if twice:
        note(f"{count(twice, 'image')} of {folder} there twice in a class; each is learned once")
    with stores.lock(store):
        learner = open_or_make(store, settings or [], recipe, trust)
        left, before = (images, 0) if again else _never_learned(learner, images)
        if not len(left):
            known = "these very images were learned before"
            which = known if before == len(images) else "no image is left to learn"
            print(f"{which}: nothing to do (--again learns them once more)")
            return
        _read([left], learner.config.data, quiet)
        checked = None if tests is None or check is None else Check(check, tests, list(learner.classes), max_drop)
        _learn_and_keep(learner, left, store, folder.name, before, checked, quiet)


def _read(sets: list[ImageSet], data: DataConfig, quiet: bool) -> None:
    """Decode images to be learned, and those of tests, for the first time, with a bar where that takes long.

    Raises UserError where nothing can be learned of them, before a store is made; it names all that do not decode.
    """
    from rich.console import Console

    from promptcl.data.checked import check_images
    from promptcl.experiments.reading import ReadingBar
    from promptcl.learner.records import check_names

    check_names(sets[0].classes)
    check_images(*sets, data=data, tell=ReadingBar(None if quiet else Console(stderr=True)).tell)


def _never_learned(learner: Learner, images: ImageSet) -> tuple[ImageSet, int]:
    """Those of the images that were never learned, and how many were learned before as what they are now."""
    sifted = learner.sift(images)
    for sentence in sifted.sentences():
        note(sentence)
    if not learner.ledger.whole and len(sifted.images):
        note("what an older promptcl learned here is noticed only where the very same folder comes again")
    return sifted.images, sifted.before


def _learn_and_keep(
    learner: Learner, images: ImageSet, store: Path, name: str, before: int, check: Check | None, quiet: bool
) -> None:
    """Learn the images, check that not too much was forgotten, save, and say how it went."""
    from promptcl.data.checked import remarks_on

    old, kept = list(learner.classes), learner.calibration
    new = learner.new(images.classes)
    warn_of_twins(new, old, store, needs_trust(learner.config))
    if check is not None:
        check.begin(learner, images)
    if not quiet:
        print(f"learning {count(len(images), 'image')} of {count(len(images.classes), 'class')}")
    try:
        with _Bar(quiet) as bar:
            record = learner.learn(images, name=name, checkpoint=store, progress=bar)
    except KeyboardInterrupt:
        from promptcl.store.checkpoint import interrupted

        how = "go on from here" if interrupted(store) else "learn this folder; nothing was kept of it"
        print(f"repeat the same line to {how}", file=sys.stderr)
        raise
    if check is not None:
        check.end(learner, store)
    learner.save(store)
    for sentence in remarks_on(images):
        note(sentence)
    more = f"; {before} {'was' if before == 1 else 'were'} learned before (--again learns them once more)"
    print(f"learned {count(len(images), 'image')}{more if before else ''}")
    if new:
        print(f"{count(len(new), 'new class')}: {some(new, 10)}")
    for sentence in record.warnings:
        note(sentence, kind="warning")
    _note_few(learner, images.classes)
    _report_held_out(record, quiet)
    if check is not None:
        check.report(quiet)
    if len(learner.classes) == 1:
        print("it knows one class only, so that is every answer; let it learn another one")
    elif learner.calibration != kept and not quiet:
        calibration = learner.calibration
        print(f"`unknown` is {unknown_below(calibration.threshold, calibration.images)}")
    print(f"{store}: {count(len(learner.classes), 'class')}")


def _note_few(learner: Learner, learned: Sequence[str]) -> None:
    """Say which of the classes have too few images beside others that have enough, or that all have one."""
    counts = learner.image_counts()
    few = [name for name in learned if counts[name] < FEW]
    if few and any(counts[name] >= FEW for name in learner.classes):
        named = some([f"{name} ({counts[name]})" for name in few])
        note(f"few images: {named}; others are easily taken for them, let it learn some more of each")
    elif len(learner.classes) > 1 and max(counts.values()) == 1:
        note("one image of each class: none could be left out to see how many answers are right; two or more tell")


def _report_held_out(record: LearnRecord, quiet: bool) -> None:
    if record.held_out and not quiet:
        print("right answers on images that were left out of what was learned:")
        print(*bars(record.held_out), sep="\n")


def open_or_make(store: Path, settings: list[str], recipe: str | None, trust: bool) -> Learner:
    """The learner in `store`, or a new one saved there. Raises UserError where settings do not fit what is there."""
    from promptcl import store as stores
    from promptcl.learner.learner import Learner
    from promptcl.recipes import load_config
    from promptcl.runtime.device import pick_device, with_precision

    if stores.checksum(store) is None:
        if others := sorted({path.name for path in store.iterdir()} - {".lock"}):
            raise UserError(
                f"{store} has other files in it ({others[0]!a}) and no learner; write the path of a new folder"
            )
        learner = Learner(load_config(recipe or DEFAULT, settings, trust))
        learner.save(store)  # so that what is interrupted goes on from here
        return learner
    saved = stores.load(store, trust=trust)
    if recipe or (settings and not saved.classes):  # the line that it was begun with may be said again
        config = load_config(recipe or DEFAULT, settings, trust)
        wanted = with_precision(config, pick_device(config.device))
        if stores.with_absolute_paths(wanted) != saved.config:
            raise UserError(
                f"{store} keeps the recipe that it was made with; leave out --recipe, or write another STORE"
                if saved.classes
                else f"{store} was begun with other settings and has learned nothing; delete it, or repeat those"
            )
        settings = []
    return Learner.load(store, settings, trust=trust)


class _Bar:
    """A bar of optimiser steps on a terminal, nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=quiet or not console.is_terminal)
        self._number = self._bar.add_task("learning", total=None)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stage(self, number: int, steps: int) -> None:
        """A new stage counts from 0 again."""
        self._bar.reset(self._number, total=steps)

    def step(self) -> None:
        """One step more."""
        self._bar.advance(self._number)
