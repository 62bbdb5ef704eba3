"""How one task is learned: the view of it that the method gets, and its stages, trained one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from promptcl.config import Config
from promptcl.data import ImageSet
from promptcl.learner.calibration import hold_out
from promptcl.runtime.seeding import task_generator
from promptcl.store.checkpoint import Checkpoint
from promptcl.training import PresentTask, Progress, Replay, Silent, Trainer

if TYPE_CHECKING:
    from promptcl.learner.learner import Learner


def parts(config: Config, images: ImageSet, task: int) -> tuple[ImageSet, ImageSet]:
    """Split the images of task number `task` into those to train on and those held out, by the seed."""
    return hold_out(images, config.train.holdout, task_generator(config.seed, task, "held out"))


def begin(learner: Learner, images: ImageSet) -> PresentTask:
    """Make the task of learning `images`, and let the method and class names of `learner` grow for it."""
    config, number = learner.config, len(learner.history)
    kept, held = parts(config, images, number)
    new = learner.new(images.classes)
    # New images are masked, so only replayed ones compare new classes with old: the memory must hold both.
    learner.memory.settle()
    early = _masked(learner) and learner.memory.images is not None
    if early:
        learner.memory.add(kept, task_generator(config.seed, number, "memory"))
    task = PresentTask(
        *(config.seed, number, len(new), learner.scenario.boundaries),
        new=kept,
        held_out=held,
        remembered=learner.memory.images,
        offered=early,
        method=learner.method,
        source=learner.batches,
        labels_of=learner.labels,
    )
    learner.method.grow(task)
    learner.classes += new
    return task


def trainer(
    learner: Learner, task: PresentTask, checkpoint: Checkpoint | None = None, progress: Progress | None = None
) -> Trainer:
    """Make the Trainer of `task`, with a checkpoint and a progress display where they are given."""

    def replay(images: ImageSet) -> Replay:
        kept = learner.memory.kept if images is learner.memory.images else {}
        rows = config.memory.batch_size or config.train.batch_size
        return Replay(images, learner.labels(images), rows, kept)

    config, allowed_K = learner.config, None
    if _masked(learner):
        allowed_K = torch.zeros(len(learner.classes), dtype=torch.bool, device=learner.device)
        allowed_K[learner.labels(task.new)] = True
    carried = None if learner.scenario.boundaries else learner.optimizers
    settings = (learner.method, learner.batches, config, task.number, learner.labels, allowed_K, replay)
    return Trainer(*settings, checkpoint, progress or Silent(), carried)


def tell(learner: Learner, task: PresentTask, trainer: Trainer) -> None:
    """Run the method's `learn` on `task` and train each stage it yields; it then has the statistics of all stages."""
    learner.method.stats.clear()
    with torch.no_grad():
        for number, stage in enumerate(learner.method.learn(learner.backbone, task)):
            trainer.run(stage, number)
    learner.method.eval()
    learner.method.stats.restore(trainer.statistics)


def _masked(learner: Learner) -> bool:
    return learner.config.train.mask and learner.scenario.masked
