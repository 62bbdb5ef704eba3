"""The command `learn`: one task from a folder of images, checked before it is kept. Heavy imports wait inside."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcl.cli.errors import one_sentence
from promptcl.cli.options import DEFAULT, Settings, Store, Trust, cache_mb_of
from promptcl.cli.terminal import bars
from promptcl.errors import UserError

if TYPE_CHECKING:
    from promptcl.data import ImageSet
    from promptcl.learner.learner import Learner
    from promptcl.learner.records import Evaluation, LearnRecord

app = typer.Typer()


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
    quiet: Annotated[bool, typer.Option("--quiet", help="No bars.")] = False,
    trust: Trust = False,
) -> None:
    """Learn the classes in FOLDER; STORE is made if need be. Known classes get more training."""
    if max_drop is not None and check is None:
        raise UserError("--max-drop needs images to check with; write --check FOLDER too")
    if max_drop is not None and max_drop < 0:
        raise UserError(f"--max-drop {max_drop:g}: expected the points that may be lost, 0 or more")
    from promptcl import store as stores
    from promptcl.data import labelled

    budget = cache_mb_of(settings)
    images = labelled(folder, cache_mb=budget)
    tests = None if check is None else labelled(check, cache_mb=budget)
    with stores.lock(store):
        learner = _open_or_make(store, settings or [], recipe, trust)
        if not again and (when := _learned(learner, images)):
            print(f"these very images were learned on {when}: nothing to do (--again learns them once more)")
            return
        checked = None if tests is None or check is None else _Check(check, tests, list(learner.classes), max_drop)
        _learn_and_keep(learner, images, store, folder.name, checked, quiet)


def _learn_and_keep(
    learner: Learner, images: ImageSet, store: Path, name: str, check: _Check | None, quiet: bool
) -> None:
    """Learn the images, check that not too much was forgotten, save, and say how it went."""
    old, kept = list(learner.classes), learner.calibration
    if check is not None:
        check.begin(learner, images)
    if not quiet:
        print(f"learning {len(images)} images of {len(images.classes)} classes")
    try:
        with _Bar(quiet) as bar:
            record = learner.learn(images, name=name, checkpoint=store, progress=bar)
    except KeyboardInterrupt:
        print("repeat the same line to go on from here", file=sys.stderr)
        raise
    if check is not None:
        check.end(learner, store)
    learner.save(store)
    new = [label for label in learner.classes if label not in old]
    print(f"learned {len(images)} images: {len(new)} new classes, {len(images.classes) - len(new)} known ones")
    for sentence in record.warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    _report_held_out(record, quiet)
    if check is not None:
        check.report(quiet)
    if len(learner.classes) == 1:
        print("it knows one class only, so that is every answer; let it learn another one")
    elif learner.calibration != kept and not quiet:
        print(f"answers below {learner.calibration.threshold:.2f} are `unknown`")
    print(f"{store}: {len(learner.classes)} classes")


def _report_held_out(record: LearnRecord, quiet: bool) -> None:
    if record.held_out and not quiet:
        print("right answers on the images that were held out of this task's training:")
        print(*bars(record.held_out), sep="\n")


@dataclass
class _Check:
    """Test images of --check: what the old classes scored before this task, and what all score after it."""

    folder: Path
    tests: ImageSet
    old: list[str]
    """Classes that the learner knew before."""
    max_drop: float | None
    """Points that the old classes may lose; None: any."""
    known: set[str] = field(default_factory=set)
    """Classes that the learner knows after this task."""
    before: Evaluation | None = None
    after: Evaluation | None = None

    def begin(self, learner: Learner, images: ImageSet) -> None:
        """Measure the old classes. Raises UserError where the check would say nothing about learning `images`."""
        self.known = {*self.old, *images.classes}
        if not self.known & set(self.tests.classes):
            raise UserError(
                f"--check {self.folder} has none of the classes of this learner ({_some(self.known)}); "
                "correct the folder"
            )
        if self.max_drop is not None and self.old and not set(self.old) & set(self.tests.classes):
            raise UserError(
                f"--check {self.folder} has none of the old classes ({_some(self.old)}), so --max-drop could not see "
                "what they lose; give images of those too"
            )
        self.before = self._measure(learner, self.old)

    def end(self, learner: Learner, store: Path) -> None:
        """Measure all classes. Raises UserError, and drops the checkpoint, where the old ones lost too much."""
        from promptcl.store.checkpoint import discard

        self.after = self._measure(learner, learner.classes)
        if self.before is None or self.after is None or self.max_drop is None:
            return
        drop = self.before.accuracy - self._old_accuracy(self.before, self.after)
        if drop > self.max_drop:
            discard(store)
            raise UserError(
                f"the old classes lost {drop:.1f} points on {self.folder}, more than --max-drop {self.max_drop:g}: "
                "nothing was kept; give more images, or a larger --max-drop"
            )

    def report(self, quiet: bool) -> None:
        """Print what was left out, and the accuracies before and after."""
        if left_out := [name for name in self.tests.classes if name not in self.known]:
            print(f"left out of the check, because the learner does not know them: {', '.join(left_out)}")
        if self.after is None:
            return
        if self.before is not None:
            now = self._old_accuracy(self.before, self.after)
            print(f"old classes on {self.folder}: {self.before.accuracy:.1f} % before, {now:.1f} % after")
        print(f"all classes on {self.folder}: {self.after.accuracy:.1f} %")
        if not quiet:
            print(*bars(self.after.by_class, self.before.by_class if self.before is not None else None), sep="\n")

    def _measure(self, learner: Learner, classes: list[str]) -> Evaluation | None:
        """Accuracy on those of the test images whose classes are among `classes`; None where there are none."""
        learned = set(classes)
        known = [name for name in self.tests.classes if name in learned]
        return learner.evaluate(self.tests.of_classes(known)) if known else None

    def _old_accuracy(self, before: Evaluation, after: Evaluation) -> float:
        """Percent right after learning, on the images that `before` was measured on."""
        return 100 * sum(after.by_class[name][0] for name in before.by_class) / before.images


def _some(names: list[str] | set[str]) -> str:
    """At most five of the names, sorted, as text."""
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _open_or_make(store: Path, settings: list[str], recipe: str | None, trust: bool) -> Learner:
    """The learner in `store`, or a new one saved there. Raises UserError where settings do not fit what is there."""
    from promptcl import store as stores
    from promptcl.learner.learner import Learner
    from promptcl.recipes import load_config

    if stores.checksum(store) is None:
        if others := sorted({path.name for path in store.iterdir()} - {".lock"}):
            raise UserError(
                f"{store} has other files in it ({others[0]!a}) and no learner; write the path of a new folder"
            )
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
    if recipe or settings:
        wanted = Learner(load_config(recipe or DEFAULT, settings, trust)).config
        if stores.with_absolute_paths(wanted) != saved.config:
            raise UserError(
                f"{store} was begun with other settings and has learned nothing; delete it, or repeat those"
            )
    return Learner.load(store, trust=trust)


def _learned(learner: Learner, images: ImageSet) -> str | None:
    """When exactly these images and classes were learned; None where they never were."""
    if not learner.history:
        return None
    sha256 = images.sha256()
    return next((task.when for task in learner.history if task.sha256 == sha256), None)


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
