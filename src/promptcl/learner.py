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
from promptcl.methods._base import load_method
from promptcl.runtime import pick_device, task_generator


@dataclass(frozen=True)
class LearnRecord:
    """What learning one task took."""

    images: int
    """Images seen, epochs counted."""
    seconds: float
    selections: list[int] | None
    """Selections of each prompt while training."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on one test set."""

    accuracy: float
    """Percent, top-1 among all classes so far, no task identity."""
    images: int
    seconds: float
    selections: list[int] | None


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
        self.batches = Batches(self.backbone, config, self.device)

    def _labels(self, images: ImageSet) -> Tensor:
        position = {name: k for k, name in enumerate(self.classes)}
        unknown = [name for name in images.classes if name not in position]
        if unknown:
            raise UserError(
                f"class {unknown[0]!r} was never learned: expected one of the {len(position)} learned classes"
            )
        ids_C = torch.tensor([position[name] for name in images.classes])
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
        if config.train.mask and method.use_mask:
            present_K = torch.zeros(len(self.classes), dtype=torch.bool, device=self.device)
            present_K[labels_N] = True
        method.pop_selections()
        if method.trained:
            method.train()
            fit(method, self.batches, images, labels_N, present_K, config, task_generator(seed, task, "training"), step)
        selections = method.pop_selections()
        method.eval()
        with torch.inference_mode():
            method.finish(self.backbone, self.batches.evaluation(images, labels_N, method.needs_images, method.group))
        self.tasks_learned += 1
        seen = len(images) * (config.train.epochs if method.trained else 1)
        return LearnRecord(seen, time.perf_counter() - start, selections)

    def logits(self, images: ImageSet, labels_N: Tensor) -> Tensor:
        """Logits [N, K] of a whole set, in its order."""
        method, parts = self.method, []
        with torch.inference_mode():
            for batch in self.batches.evaluation(images, labels_N, method.needs_images, method.group):
                parts.append(method.logits(self.backbone, batch).float())
        return torch.cat(parts)

    def evaluate(self, images: ImageSet) -> Evaluation:
        """Accuracy on `images`, every learned class competing.

        Raises:
            UserError: a class of `images` that was never learned.
        """
        start, labels_N = time.perf_counter(), self._labels(images)
        self.method.pop_selections()
        right = (self.logits(images, labels_N).argmax(1) == labels_N).sum().item()
        seconds = time.perf_counter() - start
        return Evaluation(100.0 * right / len(images), len(images), seconds, self.method.pop_selections())

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
