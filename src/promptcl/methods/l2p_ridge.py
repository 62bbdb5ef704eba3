"""L2P-Ridge: L2P's prompts, learned in the first task, under a ridge classifier from running sums (ours).

Not a published method. Two things separate it from L2P, both answers to the masked loss, which never compares classes
of different tasks: the classifier is a ridge regression from running sums (as in RanPAC, McDonnell et al. 2023,
without its random projection), exact however the classes arrive; and prompts are frozen after the first task
(first-session adaptation, Panos et al. 2023), so that those sums stay true.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone, Feature
from promptcl.config import Unread
from promptcl.data import ImageSet
from promptcl.layers import Penalty, RidgeHead
from promptcl.methods import l2p
from promptcl.methods._base import Batch, Stage, TaskView


class L2PRidgeOptions(l2p.L2POptions):
    """Settings of L2P, and those of the ridge classifier."""

    strength: float | None = Field(default=None, gt=0)
    """Ridge penalty, in the meaning of `penalty`; null: chosen from the sums after every task (`RidgeHead`)."""
    penalty: Penalty = "mean"
    """What `strength` is a share of, as in `ridge`: the `mean` variance of all features, that of `each`, or nothing
    (`absolute`)."""
    balance: bool = True
    """Classes count alike, however many images each has (no difference where all have the same number)."""
    features: Feature = "class"
    """What of an image, seen through the prompts, the classifier reads: `class`, as `pooling` says, or `deep`, tokens
    of several blocks (`Backbone.deep`)."""

    def unread(self) -> dict[str, Unread]:
        """As for L2P, and what else would be read of an image."""
        deep = {"pooling": Unread("features=deep", "features=class")} if self.features == "deep" else {}
        return {**super().unread(), **deep}


class Model(l2p.Model):
    """Prompt pool, keys, an auxiliary linear head for training, and a ridge classifier."""

    about = "prompts in the first task, ridge regression; 2 passes"
    Options = L2PRidgeOptions
    options: L2PRidgeOptions

    def __init__(self, options: L2PRidgeOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw prompts and keys; start the sums at zero."""
        super().__init__(options, backbone, generator)
        self.ridge = RidgeHead(backbone.feature_width(options.features), options.strength, options.penalty)

    @classmethod
    def reads(cls, options: L2PRidgeOptions) -> tuple[str, ...]:
        """Training; nothing is trained any more once there are images to replay."""
        return ("train.",)

    def grow(self, task: TaskView) -> None:
        """Append rows to both heads."""
        _ = task.index  # refuses a stream without boundaries: prompts are frozen when the first task ends
        super().grow(task)
        self.ridge.grow(task.new_classes)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train in the first task only, so that the sums hold images seen through these very prompts."""
        if task.index == 0:
            yield from super().learn(backbone, task)
        self.absorb(backbone, task, task.new)

    def absorb(self, backbone: Backbone, task: TaskView, images: ImageSet) -> None:
        """Add images, seen through the prompts, to the sums and solve."""
        for batch in task.batches(images):
            self.ridge.add(self.read(backbone, batch), batch.labels_B)
        self.ridge.solve(self.options.balance)

    def read(self, backbone: Backbone, batch: Batch) -> Tensor:
        """The feature [B, F] that the classifier reads, computed once an image: the prompts are frozen."""
        chosen_BN = self.choose(batch)

        def prompted() -> Tensor:
            if self.options.features == "deep":
                return backbone.deep(batch.images_BCHW, self.inserts(backbone, chosen_BN))
            return self.features(backbone, batch, chosen_BN)

        return batch.once("prompted", prompted, chosen_BN, self.pool.prompts_MLD)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Ridge logits [B, K]."""
        logits_BK: Tensor = self.ridge(self.read(backbone, batch))
        return logits_BK
