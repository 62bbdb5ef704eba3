"""The option --check of `learn`: accuracy on test images before and after. Heavy imports wait inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from promptcl.cli.terminal import bars, note, some
from promptcl.errors import UserError

if TYPE_CHECKING:
    from promptcl.data import ImageSet
    from promptcl.learner.learner import Learner
    from promptcl.learner.records import Evaluation


@dataclass
class Check:
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
        from promptcl.data.checked import check_images

        self.known = {*self.old, *images.classes}
        if not self.known & set(self.tests.classes):
            raise UserError(
                f"--check {self.folder} has none of the classes of this learner ({some(self.known)}); "
                "correct the folder"
            )
        if self.max_drop is not None and self.old and not set(self.old) & set(self.tests.classes):
            raise UserError(
                f"--check {self.folder} has none of the old classes ({some(self.old)}), so --max-drop could not see "
                "what they lose; give images of those too"
            )
        known = self.tests.of_classes([name for name in self.tests.classes if name in self.known])
        check_images(known, data=learner.config.data)
        if left_out := [name for name in self.tests.classes if name not in self.known]:
            note(f"left out of the check, because the learner does not know them: {some(left_out)}")
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
        """Print the accuracies before and after."""
        if self.after is None:
            return
        if self.before is not None:
            now = self._old_accuracy(self.before, self.after)
            print(f"old classes on {self.folder}: {self.before.accuracy:.1f} % before, {now:.1f} % after")
        for sentence in self.after.warnings:
            note(sentence, kind="warning")
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
