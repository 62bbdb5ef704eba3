"""DER++: replayed images shall get their labels and the logits they once had (Buzzega et al., NeurIPS 2020).

arXiv 2004.07211. The logits of an image are those of its first pass through training, on the augmented view, and they
stay beside it in the memory. With `draws: 2`, as in the paper, each term has images of its own. Differs from the code:
without it one draw serves both terms; an image is offered to the memory once, and replayed when its task has ended;
outputs that did not exist when it was stored are not compared. B images, R of them replayed, N new ones, K classes so
far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.layers import Sum
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.methods._tuned import Tuned, TunedOptions


class DERPPOptions(TunedOptions):
    """Settings of DER++."""

    alpha: float = Field(default=0.5, ge=0)
    """Weight of the squared distance from the stored logits, summed over those and divided by K; 0: ER."""
    beta: float = Field(default=0.5, ge=0)
    """Weight of the cross-entropy of replayed images."""
    logits: Literal["stream", "end"] = "stream"
    """Logits that are stored: of the first pass of an image through training, or of all when the task ends."""
    draws: Literal[1, 2] = 1
    """Draws of replayed images in a step, each of `memory.batch_size`: 2, one for the distance and one for the labels,
    as in the paper; 1, the same images for both."""

    def unread(self) -> dict[str, Unread]:
        """What stored logits are and whose, where they are not compared."""
        found = super().unread()
        if not self.alpha:
            found |= dict.fromkeys(("logits", "draws"), Unread("alpha=0", "alpha=0.5"))
        return found


class Model(Tuned):
    """The ViT and a head, and, while a task is learned, the logits of its images."""

    about = "the ViT, head, images and logits replayed; 1 pass"
    Options = DERPPOptions
    options: DERPPOptions

    def __init__(self, options: DERPPOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.seen_NK = Sum(0, 0, dtype=torch.float32, persistent=False)
        self.count_N = Sum(0, dtype=torch.float32, persistent=False)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train on new and remembered images, and hand over what was noted on the way."""
        stream = self.options.logits == "stream"
        self._make_room(len(task.new) if stream else 0)
        yield Stage(task.new, replay=task.memory, draws=self.options.draws)
        if stream:
            task.keep("logits", self.seen_NK.value / self.count_N.value[:, None])  # NaN for what never came
        self._make_room(0)

    def _make_room(self, images: int) -> None:
        like = self.head.bias_K
        self.seen_NK.value, self.count_N.value = like.new_zeros(images, self.classes), like.new_zeros(images)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy of new images, and both terms of replayed ones, each a mean over its own rows."""
        o, logits_BK, share = self.options, self.logits(backbone, batch), batch.old_share
        if batch.epoch == 0 and len(self.count_N.value):
            self._note(batch, logits_BK.detach())
        seen_BK = logits_BK if batch.allowed_BK is None else logits_BK.masked_fill(~batch.allowed_BK, float("-inf"))
        each_B = F.cross_entropy(seen_BK, batch.labels_B, reduction="none")
        if not share:
            return each_B.mean()
        old_B = torch.where(batch.place_B == -o.draws, o.beta * o.draws / share, 0.0)  # the last draw, or the only one
        total = (each_B * torch.where(batch.old_B, old_B, 1 / (1 - share))).sum()
        if o.alpha and "logits" in batch.kept:
            apart_R = squares(logits_BK, batch.kept["logits"])
            first_R = batch.place_B[len(each_B) - len(apart_R) :] == -1
            total = total + o.alpha * o.draws / share * (apart_R * first_R).sum()
        return total / len(each_B)

    def _note(self, batch: Batch, logits_BK: Tensor) -> None:
        """Add the logits of new images where these belong."""
        new_B = (batch.place_B >= 0).float()
        place_B = batch.place_B.clamp_min(0)
        self.seen_NK.add_rows(place_B, logits_BK.float() * new_B[:, None])
        self.count_N.add_rows(place_B, new_B)

    def keep(self, backbone: Backbone, batch: Batch) -> dict[str, Tensor]:
        """The logits [B, K] of now."""
        return {"logits": self.logits(backbone, batch)}


def squares(logits_BK: Tensor, stored_RS: Tensor) -> Tensor:
    """Squared distance [R] of the last R rows from what was stored of them, NaN where nothing was, over K."""
    now_RS = logits_BK[len(logits_BK) - len(stored_RS) :, : stored_RS.shape[1]].float()
    apart_RS = torch.where(stored_RS.isnan(), 0, now_RS - stored_RS)
    return apart_RS.square().sum(1) / logits_BK.shape[1]
