"""How one task is learned: the view that the method gets of it, and the telling of its story, stage by stage."""

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
    """What task number `task` trains on, and what it holds out: a function of the seed and the images."""
    return hold_out(images, config.train.holdout, task_generator(config.seed, task, "held out"))


def begin(learner: Learner, images: ImageSet) -> PresentTask:
    """The task that learning `images` is; method and class names of `learner` have grown for it."""
    config, number = learner.config, len(learner.history)
    kept, held = parts(config, images, number)
    new = learner.new(images.classes)
    # New rows are masked, so replayed rows alone compare new classes with old ones: they must hold both.
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
    """What trains the stages of `task`; it leaves checkpoints, and tells of each step, where it is asked to."""

    def replay(images: ImageSet) -> Replay:
        kept = learner.memory.kept if images is learner.memory.images else {}
        rows = config.memory.batch_size or config.train.batch_size
        return Replay(images, learner.labels(images), rows, kept)

    config, allowed_K = learner.config, None
    if _masked(learner):
        allowed_K = torch.zeros(len(learner.classes), dtype=torch.bool, device=learner.device)
        allowed_K[learner.labels(task.new)] = True
    carried = None if learner.scenario.boundaries else learner.moments
    settings = (learner.method, learner.batches, config, task.number, learner.labels, allowed_K, replay)
    return Trainer(*settings, checkpoint, progress or Silent(), carried)


def tell(learner: Learner, task: PresentTask, trainer: Trainer) -> None:
    """Let the method tell how `task` is learned, and train every stage of it; its counts are those of the stages."""
    learner.method.stats.clear()
    with torch.no_grad():
        for number, stage in enumerate(learner.method.learn(learner.backbone, task)):
            trainer.run(stage, number)
    learner.method.eval()
    learner.method.stats.restore(trainer.statistics)


def _masked(learner: Learner) -> bool:
    return learner.config.train.mask and learner.scenario.masked
