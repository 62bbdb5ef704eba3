"""The contract of a method. B images, C channels, H W pixels, D width, K classes so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptcl.backbone.vit import Backbone
from promptcl.config.extensions import load_module
from promptcl.config.schema import Section
from promptcl.errors import UserError


class Batch(NamedTuple):
    """What a method sees of B images: nothing about tasks."""

    images_BCHW: Tensor | None  # normalised pixels; None where the method has needs_images = False
    query_BD: Tensor  # the plain frozen ViT's class token
    labels_B: Tensor  # class ids 0..K-1; unread in evaluation


class Method(nn.Module, ABC):
    """A learner of classes on top of a frozen backbone.

    `state_dict()` is exactly what was learned: a new instance, grown as this one was, that loads it is this one again
    (what training freezes, for one, has to follow from it). The backbone is an argument, never a member. A subclass is
    called Model, lives in methods/<name>.py and has its settings in `Options`.
    """

    Options: ClassVar[type[Section]] = Section
    needs_images: ClassVar[bool] = True
    """False: the query feature is all it reads, so cached queries save the whole forward pass."""
    joint: ClassVar[bool] = False
    """True: an upper bound that is shown all tasks at once."""
    use_mask: ClassVar[bool] = True
    """False: train.mask does not apply."""
    rehearses: ClassVar[bool] = True
    """False: no gradient step comes after the first task, so a memory of images would never be replayed."""
    sums: ClassVar[bool] = False
    """True: `finish` adds up over images and sums over processes (`promptcl.ranks`), so each gives it its own part."""
    group: int = 1
    """Images whose predictions depend on each other (above 1 only for vote: batch); evaluation keeps groups whole."""

    def __init__(self, options: Any, width: int, generator: torch.Generator) -> None:
        """Start with no class: `options` of type Options, the backbone's `width`, `generator` for initial values."""
        super().__init__()
        self.options = options

    @property
    def tallies(self) -> list[Tensor]:
        """Buffers that only add up over images; several processes add up their own images and these are summed."""
        return []

    @abstractmethod
    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Make room for `classes` more classes; how many follow is never known."""

    @property
    def needs_tasks(self) -> bool:
        """True if the method uses the boundaries between tasks, which a Gaussian stream does not have."""
        return False

    def start(self, task: int) -> str | None:
        """Training on task `task` (from 0) begins; never called without boundaries. Returns a warning for the user."""
        return None

    @abstractmethod
    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K] without any knowledge of tasks."""

    def loss(self, backbone: Backbone, batch: Batch, present_K: Tensor | None) -> Tensor:
        """Scalar training loss; here cross-entropy over the classes marked in present_K (None: all).

        With rehearsal present_K is [B, K]: a mask for each row. It is a mean over rows, of which several processes have
        some each.
        """
        return masked_cross_entropy(self.logits(backbone, batch), batch.labels_B, present_K)

    def finish(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """After a task: its training images, evaluation view (class means, freezing); made only if iterated.

        With train.holdout it is called twice, and the second part is what was kept out of training.
        """

    @property
    def trained(self) -> bool:
        """False: the next task takes no gradient steps, `finish` does all."""
        return True

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters to train and their learning rates."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    def pop_selections(self) -> list[int] | None:
        """How often each prompt was selected since the last call; None for a method without a pool."""
        return None

    def pop_match(self) -> float | None:
        """Mean cosine of queries with the keys they selected, since the last call; None without a pool."""
        return None


def masked_cross_entropy(logits_BK: Tensor, labels_B: Tensor, present_K: Tensor | None) -> Tensor:
    """Mean cross-entropy; logits outside present_K become -inf, so their head rows get no gradient (as in the release).

    present_K is [K], or [B, K] where rows differ (rehearsal).
    """
    if present_K is not None:
        logits_BK = logits_BK.masked_fill(~present_K, float("-inf"))
    return F.cross_entropy(logits_BK, labels_B)


def load_method(name: str) -> type[Method]:
    """Class Model of methods/<name>.py, or of the module `name` if it is dotted.

    Importing runs code: names from files are checked before (`recipes.resolve`).
    Raises UserError where a dotted name is no module with a Model.
    """
    try:
        model: type[Method] = load_module("method", "promptcl.methods", name).Model
    except (ImportError, AttributeError) as error:
        raise UserError(f"method.name={name} cannot be used ({error}): expected a module with a class Model") from error
    return model
