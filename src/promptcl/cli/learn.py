"""The verb `learn`: a lesson from a folder, checked before it is kept. Heavy imports wait inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptcl.cli.errors import one_sentence
from promptcl.cli.options import DEFAULT, Settings, Store, Trust, cache_mb_of
from promptcl.cli.terminal import bars
from promptcl.errors import UserError

if TYPE_CHECKING:
    from promptcl.data.images import ImageSet
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
        Path | None, typer.Option("--check", metavar="FOLDER", help="Test pictures: accuracy before and after.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", metavar="POINTS", help="With --check: keep nothing if old classes lose more."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Learn pictures that were learned before once more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bars.")] = False,
    trust: Trust = False,
) -> None:
    """Teach the learner in STORE the classes in FOLDER; STORE is made if need be. Known classes get more training."""
    if max_drop is not None and check is None:
        raise UserError("--max-drop needs pictures to check with; write --check FOLDER too")
    if max_drop is not None and max_drop < 0:
        raise UserError(f"--max-drop {max_drop:g}: expected the points that may be lost, 0 or more")
    from promptcl import store as stores
    from promptcl.data.inputs import labelled
    from promptcl.store.checkpoint import discard

    budget = cache_mb_of(settings)
    images = labelled(folder, cache_mb=budget)
    tests = None if check is None else labelled(check, cache_mb=budget)
    with stores.lock(store):
        learner = _open_or_make(store, settings or [], recipe, trust)
        if not again and (when := _learned(learner, images)):
            print(f"these very pictures were learned on {when}: nothing to do (--again learns them once more)")
            return
        old = list(learner.classes)
        left_out = _uncheckable(tests, old, images, check, max_drop)
        before = _check(learner, tests, old)
        kept = learner.calibration  # of what is in the store
        steps = learner.steps(len(images))
        if not quiet:
            more = f", at most {steps} training steps" if steps else ""
            print(f"learning {len(images)} pictures of {len(images.classes)} classes{more}")
        try:
            with _progress(steps, quiet) as step:
                record = learner.learn(images, step, folder.name, store)
        except KeyboardInterrupt:
            print("repeat the same line to go on from here", file=sys.stderr)
            raise
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
    _report(record, before, after, check, left_out, quiet)
    if len(learner.classes) == 1:
        print("it knows one class only, so that is every answer; teach it another one")
    elif learner.calibration != kept and not quiet:
        print(f"answers below {learner.calibration.threshold:.2f} are `unknown`")
    print(f"{store}: {len(learner.classes)} classes")


def _report(
    record: LearnRecord,
    before: Evaluation | None,
    after: Evaluation | None,
    check: Path | None,
    left_out: list[str],
    quiet: bool,
) -> None:
    """How it went: held-out pictures, then the check."""
    if record.held_out and not quiet:
        print("right answers on the pictures that were kept out of this lesson's training:")
        print(*bars(record.held_out), sep="\n")
    if left_out:
        print(f"left out of the check, because the learner does not know them: {', '.join(left_out)}")
    if after is None:
        return
    if before is not None:
        print(f"old classes on {check}: {before.accuracy:.1f} % before, {_accuracy(after, before):.1f} % after")
    print(f"all classes on {check}: {after.accuracy:.1f} %")
    if not quiet:
        print(*bars(after.by_class, before.by_class if before is not None else None), sep="\n")


def _open_or_make(store: Path, settings: list[str], recipe: str | None, trust: bool) -> Learner:
    from promptcl import store as stores
    from promptcl.learner.learner import Learner
    from promptcl.recipes.load import load_config

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
    again = recipe or settings
    if (
        again
        and stores.with_absolute_paths(Learner(load_config(recipe or DEFAULT, settings, trust)).config) != saved.config
    ):
        raise UserError(f"{store} was begun with other settings and has learned nothing; delete it, or repeat those")
    return Learner.load(store, trust=trust)


def _learned(learner: Learner, images: ImageSet) -> str | None:
    """When a lesson with exactly these pictures and classes was learned; None where none was."""
    if not learner.history:
        return None
    sha256 = images.sha256()
    return next((task.when for task in learner.history if task.sha256 == sha256), None)


def _uncheckable(
    tests: ImageSet | None, old: list[str], images: ImageSet, check: Path | None, max_drop: float | None
) -> list[str]:
    """Test classes that the learner will not know. Raises UserError where the check would say nothing."""
    if tests is None:
        return []
    known = {*old, *images.classes}
    if not known & set(tests.classes):
        raise UserError(f"--check {check} has none of the classes of this learner ({_some(known)}); correct the folder")
    if max_drop is not None and old and not set(old) & set(tests.classes):
        raise UserError(
            f"--check {check} has none of the old classes ({_some(old)}), so --max-drop could not see what they lose; "
            "give pictures of those too"
        )
    return [name for name in tests.classes if name not in known]


def _some(names: list[str] | set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _check(learner: Learner, tests: ImageSet | None, classes: list[str]) -> Evaluation | None:
    """Accuracy on those of the test pictures whose classes are among `classes`; None where there are none."""
    learned = set(classes)
    if tests is None or not (known := [name for name in tests.classes if name in learned]):
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
