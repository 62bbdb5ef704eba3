"""A classifier that grows: learn, evaluate, predict. Labels are names at every border. K classes so far, N images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.batches import Batches
from promptcl.config import Config
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.fit import fit
from promptcl.memory import Memory, Replay
from promptcl.methods._base import load_method
from promptcl.runtime import pick_device, task_generator


@dataclass(frozen=True)
class LearnRecord:
    """What learning one task took."""

    images: int
    """Images seen, epochs and replayed ones counted."""
    seconds: float
    selections: list[int] | None
    """Selections of each prompt while training."""
    match: float | None = None
    """Mean cosine of the queries with the keys they selected while training."""
    warning: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on one test set."""

    accuracy: float
    """Percent, top-1 among all classes so far, no task identity."""
    images: int
    seconds: float
    selections: list[int] | None
    match: float | None = None
    """Mean cosine of the queries with the keys they selected."""


def _no_step() -> None:
    pass


class Learner:
    """A frozen backbone, a method, and the class names in the order they were learned."""

    def __init__(self, config: Config, backbone: Backbone | None = None) -> None:
        """Create an empty learner.

        Args: backbone may be shared between learners (it is frozen); None loads the one of the config.

        Raises:
            UserError: weights, backbone or device that cannot be used.
        """
        self.config = config
        self.device = pick_device(config.device)
        self.backbone = (backbone or Backbone.create(config.backbone)).to(self.device)
        model = load_method(config.method["name"])
        options = model.Options(**{k: v for k, v in config.method.items() if k != "name"})
        self.method = model(options, self.backbone.width, task_generator(config.seed, 0, "initial values"))
        self.method.to(self.device)
        self.classes: list[str] = []
        self.tasks_learned = 0
        self.boundaries = config.scenario != "gaussian"
        if not self.boundaries and self.method.needs_tasks:
            raise UserError(
                f"method.name={config.method['name']} with these options needs to know where tasks end, which "
                "scenario=gaussian never says; choose another method or, for l2p, method.diversify=none"
            )
        self.memory = Memory(config.memory.per_class)
        self._optimizer: torch.optim.Optimizer | None = None
        self.batches = Batches(self.backbone, config, self.device)

    def _labels(self, images: ImageSet, unseen: bool = False) -> Tensor:
        """Class ids on the device; with `unseen`, -1 for classes never learned."""
        position = {name: k for k, name in enumerate(self.classes)}
        unknown = [name for name in images.classes if name not in position]
        if unknown and not unseen:
            raise UserError(
                f"class {unknown[0]!r} was never learned: expected one of the {len(position)} learned classes"
            )
        ids_C = torch.tensor([position.get(name, -1) for name in images.classes])
        return ids_C[torch.as_tensor(images.labels)].to(self.device)

    def learn(self, images: ImageSet, step: Callable[[], None] = _no_step) -> LearnRecord:
        """Learn the classes of `images`: new names are added, known names get more training.

        What happens depends on (seed, number of tasks learned before), the images and the state, on nothing else.

        Raises:
            UserError: the loss is not finite, an image does not decode.
        """
        start, method, config = time.perf_counter(), self.method, self.config
        seed, task = config.seed, self.tasks_learned
        new = [name for name in images.classes if name not in self.classes]
        self.classes += new
        method.grow(len(new), task_generator(seed, task, "new classes"))
        labels_N = self._labels(images)
        present_K = None
        # Every domain has all classes, so there is nothing to mask.
        if config.train.mask and method.use_mask and config.scenario != "domain":
            present_K = torch.zeros(len(self.classes), dtype=torch.bool, device=self.device)
            present_K[labels_N] = True
        method.pop_match()
        method.pop_selections()
        warning, replay, trained = None, self._replay(), method.trained
        if trained:
            warning = method.start(task) if self.boundaries else None
            method.train()
            generator = task_generator(seed, task, "training")
            previous = None if self.boundaries else self._optimizer
            self._optimizer = fit(
                method, self.batches, images, labels_N, present_K, config, generator, step, replay, previous
            )
            self.remember(images, task)
        match, selections = method.pop_match(), method.pop_selections()
        method.eval()
        with torch.inference_mode():
            method.finish(self.backbone, self.batches.evaluation(images, labels_N, method.needs_images, method.group))
        self.tasks_learned += 1
        seen = len(images) * (config.train.epochs if trained else 1)
        if trained and replay is not None:
            seen += replay.rows * config.train.epochs * self.batches.steps_per_epoch(len(images))
        return LearnRecord(seen, time.perf_counter() - start, selections, match, warning)

    def remember(self, images: ImageSet, task: int) -> None:
        """Offer the images of task `task` to the memory. The memory is a function of the seed and these calls alone."""
        if self.config.memory.per_class:
            self.memory.add(images, task_generator(self.config.seed, task, "memory"))

    def _replay(self) -> Replay | None:
        if self.memory.images is None:
            return None
        rows = self.config.memory.batch_size or self.config.train.batch_size
        return Replay(self.memory.images, self._labels(self.memory.images), rows)

    def logits(self, images: ImageSet, labels_N: Tensor) -> Tensor:
        """Logits [N, K] of a whole set, in its order."""
        method, parts = self.method, []
        with torch.inference_mode():
            for batch in self.batches.evaluation(images, labels_N, method.needs_images, method.group):
                parts.append(method.logits(self.backbone, batch).float())
        return torch.cat(parts)

    def evaluate(self, images: ImageSet, unseen: bool = False) -> Evaluation:
        """Accuracy on `images`, every learned class competing; with `unseen`, classes never learned count as wrong.

        Raises:
            UserError: a class of `images` that was never learned, without `unseen`.
        """
        start, labels_N = time.perf_counter(), self._labels(images, unseen)
        self.method.pop_match()
        self.method.pop_selections()
        right = (self.logits(images, labels_N).argmax(1) == labels_N).sum().item()
        seconds = time.perf_counter() - start
        match, selections = self.method.pop_match(), self.method.pop_selections()
        return Evaluation(100.0 * right / len(images), len(images), seconds, selections, match)

    def predict(self, images: ImageSet, top: int = 1) -> list[list[tuple[str, float]]]:
        """The `top` most probable class names of each image with their softmax probabilities, best first."""
        logits_NK = self.logits(images, torch.zeros(len(images), dtype=torch.long, device=self.device))
        best = logits_NK.softmax(1).topk(min(top, len(self.classes)), dim=1)
        return [
            [(self.classes[k], p) for k, p in zip(ids, probabilities, strict=True)]
            for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def trained_parameters(self) -> int:
        """Number of parameters that gradients move (prompts, keys, head), with the classes so far."""
        return sum(p.numel() for group in self.method.parameter_groups(1.0) for p in group["params"])
