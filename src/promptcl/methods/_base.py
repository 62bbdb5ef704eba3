"""The contract of a method: what it is given, and what it defines to say how a task is learned.

B images, C channels, H W pixels, D width, K classes so far.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.config import Section
from promptcl.config.extensions import load_module
from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.layers.sums import Statistics


class Batch(Protocol):
    """A batch of B images, whose values are computed only when they are read, and only once."""

    @property
    def images_BCHW(self) -> Tensor:
        """Normalised pixels: an augmented view in training, the evaluation view elsewhere."""

    @property
    def query_BD(self) -> Tensor:
        """What `Method.query` gives, without gradient, cached where it can be: the class token of the frozen ViT."""

    @property
    def labels_B(self) -> Tensor:
        """Class ids 0 .. K-1; they mean nothing where images are only predicted."""

    @property
    def allowed_BK(self) -> Tensor | None:
        """Which classes compete in the loss of each image (the training mask); None: all of them."""

    @property
    def old_B(self) -> Tensor:
        """True for the images that come from the memory."""

    @property
    def old_share(self) -> float:
        """Share of images from the memory in the whole batch, of which each of several processes has some rows."""

    @property
    def place_B(self) -> Tensor:
        """Places of the rows in the images of the stage, or of the loop; -1 for those from the memory, -2 for those of
        its second draw (`Stage.draws`), and so on.
        """

    @property
    def epoch(self) -> int:
        """Number of this epoch of the stage, from 0."""

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """What `Method.keep` gave for the rows of `old_B` when they were stored; NaN where nothing was known then."""

    @property
    def generator(self) -> torch.Generator:
        """Randomness of this batch: a function of seed, task, stage and step. On the CPU."""

    def another_view(self) -> Tensor:
        """The same images, augmented once more [B, C, H, W]."""

    def once(self, name: str, compute: Callable[[], Tensor], *of: Tensor) -> Tensor:
        """What `compute` gives [B, ...] for these images, computed once for as long as `of` stay the same bit for bit.

        For features of what is frozen: test images that are asked for again after every task are then not computed
        again. `of` is all that the feature depends on beside the images, the options and the frozen ViT: the prompts,
        or the parameters of an adapter. Under one name the newest values are kept. In training nothing is kept.
        """


class TaskView(Protocol):
    """What a method may see of the task it learns.

    When a learner is loaded, `grow` is told of its past tasks again: then there are `index`, `new_classes`, `count`
    and `generator`, and nothing else.
    """

    @property
    def index(self) -> int:
        """Number of the task, from 0. Raises UserError in a stream that has no boundaries between tasks."""

    @property
    def new_classes(self) -> int:
        """Number of classes that were never seen before."""

    @property
    def count(self) -> int:
        """Number of its images, those held out counted."""

    @property
    def new(self) -> ImageSet:
        """The images to learn."""

    @property
    def held_out(self) -> ImageSet:
        """Images of the task that are kept out of training (`train.holdout`)."""

    @property
    def memory(self) -> ImageSet | None:
        """Images kept for rehearsal, None where there are none; with a training mask, also images of this task."""

    @property
    def generator(self) -> torch.Generator:
        """Randomness of this task: a function of seed and task. On the CPU."""

    def batches(self, images: ImageSet | None = None) -> Iterator[Batch]:
        """Evaluation batches of `images` (None: `new`); with several processes, only those of this one."""

    def collect(self, function: Callable[[Batch], Tensor], images: ImageSet | None = None) -> Tensor:
        """Rows [N, X] that `function` gives for all of `images`, in their order, the same in every process."""

    def queries(self, images: ImageSet | None = None) -> Tensor:
        """Queries [N, D] of all of `images`, in their order, the same in every process."""

    def remember(self) -> ImageSet | None:
        """Let the memory take its share of `new` now, and not when the task ends; all that it holds then, or None."""

    def keep(self, name: str, rows_NX: Tensor) -> None:
        """Have the memory keep a row of `rows_NX` beside each of those of the N `new` images that it keeps.

        A row that begins with NaN is left to `Method.keep`.
        """

    def warn(self, sentence: str) -> None:
        """Tell the user something about this task, in one sentence."""


class OutOfFold(NamedTuple):
    """What a method says of each image learned so far as if it had not learned that image."""

    logits_NK: Tensor
    labels_N: Tensor
    """Class ids [N]."""
    familiarity_N: Tensor
    """As `Method.familiarity` gives it."""


@dataclass(frozen=True)
class Stage:
    """One run of the training loop, with the settings that a method asks for."""

    images: ImageSet | None
    """What to train on; None: `steps` steps on what the loss draws itself."""
    loss: Callable[[Backbone, Batch], Tensor] | None = None
    """Training loss, a scalar mean over the rows of the batch; None: `Method.loss`."""
    groups: Sequence[dict[str, Any]] | None = None
    """Parameters to train and their learning rates, as an optimiser takes them; None: `Method.parameter_groups`."""
    replay: ImageSet | None = None
    """Images of which some join each batch (`memory.batch_size`)."""
    draws: int = 1
    """How often, each time independently, images are drawn from `replay` for a batch."""
    epochs: int | None = None
    """Epochs over `images`; None: as `train` says."""
    steps: int | None = None
    """Optimiser steps, instead of epochs."""
    lr: float | None = None
    """Learning rate of the groups that name none; None: as `train` says."""
    rate: Callable[[float], float] | None = None
    """What the learning rates are times, given the share of the steps that are done; None: as `train` says."""
    together: int = 1
    """Number of consecutive rows that always go to the same process; 0: the whole batch."""
    fresh: bool = False
    """Whether the optimiser is new also in a stream without boundaries, where it goes on from task to task."""
    after_step: Callable[[], None] | None = None
    """Called after every optimiser step, for instance for moving averages or projections."""


class Method(nn.Module, ABC):
    """A learner of classes on top of a frozen backbone.

    `state_dict()` is exactly what was learned: a new instance that grows by the same tasks and loads it gives the same
    answers. The backbone is an argument, never a member (`Backbone.copy()` may be one). A subclass is
    called Model, lives in methods/<name>.py and has its settings in `Options`.
    """

    about: ClassVar[str] = ""
    """What is learned; passes of a test image through the ViT: `prompts with keys, head; 2 passes`. For lists alone."""
    Options: ClassVar[type[Section]] = Section
    task_prompts: ClassVar[bool] = False
    """Whether each task has prompts of its own and an image takes those of one: statistic `prompts` counts tasks."""
    together: int = 1
    """Number of consecutive images whose predictions depend on each other (a vote); such groups are never split."""

    def __init__(self, options: Any, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class.

        What is frozen later has to follow from the state or from `grow`: `requires_grad` is not saved. Args: options of
        type Options; backbone, to read its sizes or to copy it (no reference is kept); generator for initial values.
        """
        super().__init__()
        self.options = options
        self.stats = Statistics()
        """Counts and means by name, which the learner collects."""

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Sections outside of `method` that are read with these options: `train.` where something is trained, `memory.`
        where images are replayed; `!train.mask` is a setting of them that is not. What is given by hand of others is
        refused. Here both.
        """
        return ("train.", "memory.")

    @abstractmethod
    def grow(self, task: TaskView) -> None:
        """Make room for a task: shapes change here and nowhere else, since this is repeated when a learner is loaded.

        Called once a task, before `learn`, with 0 new classes too. A method that has to know where tasks end reads
        `task.index` here, which refuses a stream without boundaries before anything is learned.
        """

    def query(self, backbone: Backbone, images_BCHW: Tensor) -> Tensor:
        """What `Batch.query_BD` holds [B, F]; here the class token of the frozen ViT after the final norm.

        It is computed once an image and kept, so it may depend on nothing that changes once it has been read.
        """
        return backbone.query(images_BCHW)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Learn the task: each stage that is yielded is trained before this function continues.

        Runs without gradient outside of the stages (`torch.enable_grad()` gives it). An interrupted task runs
        this again from the start, so everything here must depend only on the arguments and on what was learned.
        """
        yield Stage(task.new, replay=task.memory)

    @abstractmethod
    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K] without any knowledge of tasks."""

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Scalar training loss, a mean over rows; here cross-entropy over the classes that the batch allows."""
        return masked_cross_entropy(self.logits(backbone, batch), batch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters to train and their learning rates; here all that require a gradient, at `lr`."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Learn images that were held out for calibration, once it is done; methods that add up images add them."""

    def familiarity(self, backbone: Backbone, batch: Batch, logits_BK: Tensor) -> Tensor | None:
        """How much each image looks like one of the classes [B]; what is less familiar than nearly all right answers
        is called unknown. None (here): the largest probability says it. logits_BK: what `logits` gave.
        """
        return None

    def out_of_fold(self) -> OutOfFold | None:
        """What is said of each image learned so far as if it had not been learned; None (here): not known."""
        return None

    def keep(self, backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
        """What the memory keeps beside each of these images [B, ...], float, by name; it comes back as `Batch.kept`."""
        return {}

    @property
    def mendable(self) -> bool:
        """Whether `mend` can take images away again: the method has kept what each image added."""
        return False

    def mend(self, labels_N: Tensor, classes: int) -> None:
        """Become what learning the images again with these class ids gives, in the same order; -1 takes one away.

        labels_N [N]: for every image learned so far, in the order in which they were learned, which is task by task
        those of `task.new` and then those of `task.held_out`; classes: how many there are then. Images taken away do
        not count at the next call. Afterwards shapes are those of `grow` by the tasks that are left.
        Raises UserError where the method cannot, which is the default.
        """
        raise UserError("this method has not kept what each image added, so it cannot take images away again")


def masked_cross_entropy(logits_BK: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy; logits of classes that are not allowed become -inf, so their head rows get no gradient."""
    allowed_BK = batch.allowed_BK
    if allowed_BK is not None:
        logits_BK = logits_BK.masked_fill(~allowed_BK, float("-inf"))
    return F.cross_entropy(logits_BK, batch.labels_B)


def load_method(name: str) -> type[Method]:
    """Load class Model of methods/<name>.py, of <name>.py in the current folder, or of the module `name` if dotted.

    Importing runs code, so names from files are checked before (`promptcl.recipes.resolve`).
    Raises UserError where there is no such module, or it has no Model that is a Method.
    """
    model = getattr(load_module("method", "promptcl.methods", name), "Model", None)
    if not (isinstance(model, type) and issubclass(model, Method)):
        raise UserError(f"method.name={name} cannot be used: expected a module with a class Model(promptcl.Method)")
    return model
