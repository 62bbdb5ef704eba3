"""How one task is learned: the view of it that the method gets, and its stages, trained one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Config
from promptcl.data import ImageSet, Scenario
from promptcl.data.checked import assume_depth, check_images, depth_of
from promptcl.errors import UserError
from promptcl.learner.calibration import hold_out
from promptcl.learner.ledger import Ledger
from promptcl.learner.records import LearnRecord, class_ids
from promptcl.methods._base import Method, load_method
from promptcl.runtime.device import check_dtypes
from promptcl.runtime.seeding import task_generator
from promptcl.store import TaskRecord
from promptcl.store.checkpoint import Checkpoint
from promptcl.training import Batches, Memory, PresentTask, Progress, Replay, Silent, Trainer
from promptcl.training.optim import Moments

MANY = 50
"""Tasks from which on a method with prompts of each task says that it has many."""


class Story(ABC):
    """Base class of Learner that learns one task: with a method, a backbone, the classes so far, a memory of images."""

    config: Config
    scenario: Scenario
    device: torch.device
    backbone: Backbone
    method: Method
    batches: Batches
    memory: Memory
    ledger: Ledger
    notes: dict[str, Any]
    """JSON values that are saved with the learner."""
    classes: list[str]
    """Names of the classes in the order they were learned."""
    history: list[TaskRecord]
    """What was learned, task by task."""
    moments: dict[int, Moments]
    """Of optimisers, by stage, where they go on from task to task (a stream without boundaries)."""

    _whole: bool
    """False while something is learned or changed, and for good where that did not end."""

    def check_whole(self) -> None:
        """Raise UserError where a `learn` was interrupted."""
        if not self._whole:
            raise UserError("this learner was interrupted while it learned: expected a whole one, load it again")

    def _new_method(self) -> Method:
        """The method before its first task."""
        model = load_method(self.config.method["name"])
        options = model.Options(**{k: v for k, v in self.config.method.items() if k != "name"})
        method = model(options, self.backbone, task_generator(self.config.seed, 0, "initial values"))
        check_dtypes(method, self.device)
        return method.to(self.device).eval()

    def _decoded(self, images: ImageSet) -> list[str]:
        """Decode all images that are to be learned; sentences about what was assumed of them.

        Raises UserError, which names all that do not decode.
        """
        before = self._depth
        assume_depth(images, before, at_least=True)
        check_images(images, data=self.config.data)
        if (bits := depth_of(images)) in (None, before):
            return []
        self.notes["depths"] = [*self._depths, [len(self.history), bits]]
        was = f", so far they were taken for {before} bits" if before else ""
        return [f"images of more than 8 bits are taken for {bits} bits, which hold their largest value{was}"]

    @property
    def _depth(self) -> int | None:
        """The depth of images that hold more than 8 bits, in what was learned so far."""
        return self._depths[-1][1] if self._depths else None

    @property
    def _depths(self) -> list[list[int]]:
        """From which task on such images are taken for how many bits: pairs, of the tasks learned so far."""
        found = self.notes.get("depths", [[0, self.notes.get("depth")]])  # one number in stores of an older promptcl
        pairs = [pair for pair in found if isinstance(pair, list)] if isinstance(found, list) else []
        sound = [pair for pair in pairs if [type(value) for value in pair] == [int, int] and 8 <= pair[1] <= 16]
        return [pair for pair in sound if 0 <= pair[0] < len(self.history)]

    def _forget_depths(self, stay: Sequence[bool]) -> None:
        """Number the tasks anew of which some do not `stay`, and forget what no task is left to know of."""
        before = [0, *accumulate(stay)]  # of each task: how many before it stay
        if self._depths:
            self.notes["depths"] = [[before[t], bits] for t, bits in self._depths if before[t] < before[-1]]

    def as_learned(self, images: ImageSet) -> ImageSet:
        """The images, those of more than 8 bits taken for as deep as those that were learned.

        Raises UserError: a `learn` was interrupted, so that there is no answer to them.
        """
        self.check_whole()
        assume_depth(images, self._depth)
        return images

    def remember(self, images: ImageSet, task: int) -> None:
        """Offer the images of task number `task` to the memory again; it keeps the same as when they were learned."""
        kept, held = self.parts(images, task)
        self.memory.add(kept, task_generator(self.config.seed, task, "memory"), task)
        self.memory.add(held, task_generator(self.config.seed, task, "held-out memory"), task)

    @abstractmethod
    def _take_in(self, images: ImageSet, name: str | None) -> LearnRecord:
        """Learn all of `images` as a task called `name`."""

    def labels(self, images: ImageSet, unseen: bool = False) -> Tensor:
        """Class ids [N] on the device; with `unseen`, -1 for classes never learned, which else raise UserError."""
        return class_ids(images, self.classes, unseen).to(self.device)

    def image_counts(self) -> Counter[str]:
        """How many images of each class were learned, in all tasks together."""
        counts: Counter[str] = Counter()
        for task in self.history:
            counts.update(task.images)
        return counts

    def new(self, names: Iterable[str]) -> list[str]:
        """Return those of `names` that were never learned."""
        known = set(self.classes)
        return [name for name in names if name not in known]

    def parts(self, images: ImageSet, task: int) -> tuple[ImageSet, ImageSet]:
        """Split the images of task number `task` into those to train on and those held out, by the seed."""
        return hold_out(images, self.config.train.holdout, task_generator(self.config.seed, task, "held out"))

    def begin(self, images: ImageSet) -> PresentTask:
        """Make the task of learning `images`, and let the method and the list of classes grow for it."""
        seed, number = self.config.seed, len(self.history)
        kept, held = self.parts(images, number)
        new = self.new(images.classes)
        # New images are masked, so only replayed ones compare new classes with old: the memory must hold both.
        self.memory.settle()
        early = self._masked and self.memory.images is not None

        def offer() -> ImageSet | None:
            self.memory.add(kept, task_generator(seed, number, "memory"), number)
            return self.memory.images

        task = PresentTask(
            *(seed, number, len(new), len(images), self.scenario.boundaries),
            new=kept,
            held_out=held,
            remembered=offer() if early else self.memory.images,
            offered=early,
            offer=offer,
            method=self.method,
            source=self.batches,
            labels_of=self.labels,
            kept_of=self.memory.kept_of,
            memory_is_lost=bool(self.config.memory.size and number and self.memory.images is None),
        )
        self.method.grow(task)
        self.method.to(self.device).eval()  # what has grown too
        self.classes += new
        if self._masked:
            task.allowed_K = torch.zeros(len(self.classes), dtype=torch.bool, device=self.device)
            task.allowed_K[self.labels(kept)] = True
        return task

    def trainer(
        self, task: PresentTask, checkpoint: Checkpoint | None = None, progress: Progress | None = None
    ) -> Trainer:
        """Make the Trainer of `task`, with a checkpoint and a progress display where they are given."""
        carried = None if self.scenario.boundaries else self.moments
        settings = (self.method, self.batches, self.config, task.number, self.labels, task.allowed_K, self._replay)
        return Trainer(*settings, checkpoint, progress or Silent(), carried)

    def tell(self, task: PresentTask, trainer: Trainer) -> None:
        """Run the method's `learn` on `task` and train each stage it yields; its statistics are then of the stages."""
        self.method.stats.clear()
        if self.method.task_prompts and task.number == MANY:
            task.warn(
                f"this is task {MANY + 1}, and each has prompts of its own, which take space and are harder to "
                "choose from the more there are; learn more images at a time"
            )
        with torch.no_grad():
            for number, stage in enumerate(self.method.learn(self.backbone, task)):
                task.look_at(stage)
                trainer.run(stage, number)
        self.method.eval()
        self.method.stats.restore(trainer.statistics)

    def _replay(self, images: ImageSet, draws: int) -> Replay:
        """Make the Replay of `images` that join the batches of a stage, in so many draws."""
        rows = self.config.memory.batch_size or self.config.train.batch_size
        return Replay(images, self.labels(images), rows, self.memory.kept_of(images), draws)

    @property
    def _masked(self) -> bool:
        return self.config.train.mask and self.scenario.masked
