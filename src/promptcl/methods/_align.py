"""Class-Gaussian alignment: after a task a head is trained on features drawn from a Gaussian of each class.

Not a method itself; any method with a head on one feature can have it. From SLCA (Zhang et al., ICCV 2023, arXiv
2303.05118) and HiDe-Prompt (Wang et al., NeurIPS 2023, arXiv 2310.07234). N features of a step, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.config import Section, Unread
from promptcl.data import ImageSet
from promptcl.layers import ClassGaussians, Covariance, StepCount, half_cosine
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.runtime.seeding import task_generator


class AlignOptions(Section):
    """Settings of an alignment."""

    covariance: Covariance = "full"
    """Gaussians of the classes: `full`, D (D + 1) / 2 numbers a class; `diagonal`, D; `shared`, one for all classes."""
    align_epochs: int = Field(default=5, ge=0)
    """Epochs over what is drawn, anew in each of them; 0: no alignment."""
    align_samples: int = Field(default=256, ge=1)
    """Features drawn of each class in an epoch."""
    align_batch: int = Field(default=256, ge=1)
    """Features of a step."""
    align_lr: float = Field(default=0.01, gt=0)
    """Learning rate of the alignment, which falls to 0 by a half cosine; the optimiser is that of `train`."""
    align_decay: float = Field(default=5e-4, ge=0)
    """Weight decay of the alignment."""

    def unread(self) -> dict[str, Unread]:
        """What says how a head is aligned, where none is."""
        how = ("align_samples", "align_batch", "align_lr", "align_decay")
        none = dict.fromkeys(how, Unread("align_epochs=0", "align_epochs=5"))
        return {**super().unread(), **({} if self.align_epochs else none)}


class Alignment(nn.Module):
    """A Gaussian of each class, and the stage that trains a head on what is drawn from all of them.

    Gaussians stay those of the task that brought a class: where the features go on to change they grow old.
    """

    def __init__(self, width: int, options: AlignOptions, jitter: float = 1e-4) -> None:
        """Start with no class."""
        super().__init__()
        self.options = options
        self.gaussians = ClassGaussians(width, options.covariance, jitter)
        self.steps = StepCount()
        self._epoch, self._drawn = -1, (torch.empty(0), torch.empty(0))
        self._factors: list[Tensor | None] | None = None  # of the covariances, which no step of a stage changes

    def grow(self, classes: int) -> None:
        """Append `classes` classes."""
        self.gaussians.grow(classes)

    def add(self, task: TaskView, feature: Callable[[Batch], Tensor], images: ImageSet) -> None:
        """Add the features [B, D] that `feature` gives for `images`."""
        for batch in task.batches(images):
            self.gaussians.add(feature(batch), batch.labels_B)

    def stage(
        self,
        task: TaskView,
        parameters: Iterable[nn.Parameter],
        logits: Callable[[Tensor], Tensor],
        change: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None,
    ) -> Stage:
        """The stage that trains `parameters`.

        Args: logits: those [N, K] of features [N, D], of which the cross-entropy is taken; change: what to make of
        the features of an epoch, given their class ids.
        """
        o, rows = self.options, len(self.gaussians.known) * self.options.align_samples
        per_epoch = -(-rows // o.align_batch)
        seed = int(torch.randint(2**62, (), generator=task.generator))
        self.steps.restart()
        self._epoch, self._factors = -1, None

        def drawn_loss(backbone: Backbone, batch: Batch) -> Tensor:
            epoch, place = divmod(self.steps.done, per_epoch)
            if epoch != self._epoch:
                self._epoch, self._drawn = epoch, self._draw(seed + epoch, change)
            features_ND, labels_N = (t[place * o.align_batch : (place + 1) * o.align_batch] for t in self._drawn)
            return F.cross_entropy(logits(features_ND), labels_N)

        groups = [{"params": list(parameters), "lr": o.align_lr, "weight_decay": o.align_decay}]
        steps = o.align_epochs * per_epoch
        how: dict[str, Any] = {"steps": steps, "lr": o.align_lr, "rate": half_cosine}
        return Stage(None, drawn_loss, groups, after_step=lambda: self._count(steps), **how)

    @torch.no_grad()
    def _draw(
        self, seed: int, change: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Features and class ids of an epoch, shuffled."""
        if self._factors is None:
            self._factors = self.gaussians.factors()
        features_ND, labels_N = self.gaussians.draw(self.options.align_samples, seed, self._factors)
        generator = task_generator(seed, 0, "alignment")
        if change is not None:
            features_ND = change(features_ND, labels_N, generator)
        order_N = torch.randperm(len(labels_N), generator=generator).to(labels_N.device)
        return features_ND[order_N], labels_N[order_N]

    def _count(self, steps: int) -> None:
        self.steps.count()
        if self.steps.done == steps:  # what was drawn is large, and no longer needed
            self._epoch, self._drawn, self._factors = -1, (torch.empty(0), torch.empty(0)), None


def normalised(logits_NK: Tensor, task_of_class_K: Tensor, tasks: int, temperature: float | None) -> Tensor:
    """Divide the logits of each row by a temperature times the mean, over tasks, of the norm of those of its classes.

    As in SLCA; without a temperature they stay as they are. tasks: their number, of which some may have no new class.
    """
    if temperature is None:
        return logits_NK
    # Not one_hot, which asks the device for the largest id.
    member_KS = (task_of_class_K[:, None] == torch.arange(tasks, device=task_of_class_K.device)).to(logits_NK)
    some_S = member_KS.amax(0)
    norm_NS = (logits_NK.square() @ member_KS).clamp_min(1e-14).sqrt() * some_S  # at 0 a root has no gradient
    return logits_NK / (temperature * norm_NS.sum(1, keepdim=True) / some_S.sum())


def nearer(
    gaussians: ClassGaussians,
    task_of_class_K: Tensor,
    task: int,
    features_ND: Tensor,
    labels_N: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Move what was drawn so that the mean of each class is shorter, by up to a tenth, the older it is (SLCA)."""
    short_K = 0.1 * (1 - (task_of_class_K + 1) / (task + 1))
    return features_ND - (short_K[:, None] * gaussians.mean_KD).to(features_ND)[labels_N]
