"""EWC: each weight is held by a spring as stiff as its Fisher information (Kirkpatrick et al. 2017, arXiv 1612.00796).

`anchor` has three forms: `separate`, a spring for each task (Kirkpatrick); `online`, one that is added to and rests at
the last weights (Schwarz et al. 2018, arXiv 1805.06370); `moving`, EWC++ (Chaudhry et al. 2018, arXiv 1801.10112), with
a moving average taken while training. Gradients are squared image by image, under the training mask; the square of a
batch's mean gradient, which several code bases take, is another number. B images, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.layers import StepCount
from promptcl.layers.springs import PerNumber, Springs, gradient_squares
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.methods._tuned import Tuned, TunedOptions


class EWCOptions(TunedOptions):
    """Settings of EWC."""

    weight: float = Field(default=1000.0, ge=0)
    """Lambda. 1000 is not tuned: choose it with `data.validation_per_class`; no value carries over from other code."""
    anchor: Literal["separate", "online", "moving"] = "online"
    """A spring for each task; one for all, at the last weights; or EWC++."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """`online`: what is left of the stiffness so far with each task."""
    fisher: Literal["label", "model"] = "label"
    """Whose labels: those of the images, or drawn from what the model answers."""
    fisher_images: int = Field(default=500, ge=1)
    """Images of a task (`moving`: of a batch) whose gradients are taken, at most."""
    average: float = Field(default=0.9, gt=0, le=1)
    """`moving`: weight of the newest batch."""
    every: int = Field(default=50, ge=1)
    """`moving`: steps from one batch to the next whose gradients are taken, from the first of each (micro-)task on."""
    rest_every: int = Field(default=1, ge=1)
    """`moving`: tasks (micro-tasks of a stream) after which the springs are made anew."""

    def unread(self) -> dict[str, Unread]:
        """What belongs to another form."""
        of_form = {"average": "moving", "every": "moving", "rest_every": "moving", "decay": "online"}
        other = {key: Unread(f"anchor={self.anchor}", f"anchor={form}") for key, form in of_form.items()}
        return {**super().unread(), **{key: why for key, why in other.items() if of_form[key] != self.anchor}}


class Model(Tuned):
    """The ViT and a head, and the springs of both."""

    about = "the ViT, head, held by springs; 1 pass"
    Options = EWCOptions
    options: EWCOptions

    def __init__(self, options: EWCOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start without springs."""
        super().__init__(options, backbone, generator)
        self.springs = Springs(self.trained, keep_rest=options.anchor != "online")
        self.average = PerNumber(self.trained if options.anchor == "moving" else [])
        self.tasks, self.steps = 0, StepCount()

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training; nothing is replayed."""
        return ("train.",)

    def grow(self, task: TaskView) -> None:
        """Append rows to the head, which nothing holds yet."""
        if self.options.anchor != "moving":
            _ = task.index
        super().grow(task)
        self.springs.grow(self.trained)
        self.average.grow(self.trained[: len(self.average)])  # it is empty, or of all
        self.tasks += 1

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train among the springs there are, and add those of this task."""
        o = self.options
        self.steps.restart()
        if o.anchor == "moving":
            if (self.tasks - 1) % o.rest_every == 0:
                self.springs.hold(self.trained, self.average.values)
            yield Stage(task.new, together=0, after_step=self.steps.count)  # an average is no sum over processes
            return
        if o.anchor == "online":
            self.springs.hold(self.trained)
        yield Stage(task.new)
        before = [value.clone() for value in self.springs.stiffness.values]
        self.springs.stiffness.add(before, o.decay - 1 if o.anchor == "online" else 0)
        chosen = torch.randperm(len(task.new), generator=task.generator)[: o.fisher_images].sort().values
        for batch in task.batches(task.new.select(chosen.tolist())):
            self.springs.stiffness.add(self._squares(batch, len(batch.labels_B)), 1 / len(chosen))
        if o.anchor == "separate":
            self.springs.join(before, self.trained)

    def _squares(self, batch: Batch, rows: int) -> list[Tensor]:
        """Squared gradients of the first images of a batch, summed."""
        drawn = batch.generator if self.options.fisher == "model" else None
        images_BCHW, told = batch.images_BCHW[:rows], (batch.labels_B, batch.allowed_BK, drawn)
        return gradient_squares(self.trained, lambda x_1CHW: self.head(self.vit(x_1CHW).pooled_BD), images_BCHW, *told)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and the energy of the springs."""
        o, loss = self.options, super().loss(backbone, batch)
        if o.anchor == "moving" and self.steps.done % o.every == 0:
            rows = min(len(batch.labels_B), o.fisher_images)
            self.average.average([part / rows for part in self._squares(batch, rows)], o.average)
        return loss + o.weight * self.springs.energy(self.trained) if self.tasks > 1 and o.weight else loss
