"""L2P-Ridge: L2P's prompts, learned in the first tasks, under a ridge classifier from running sums (ours).

Not a published method. Two things separate it from L2P, both answers to the masked loss, which never compares classes
of different tasks: the classifier is a ridge regression on the class token from running sums (as in RanPAC, McDonnell
et al. 2023, without its random projection), exact however the classes arrive; and prompts are frozen after
`adapt_tasks` tasks (first-session adaptation, Panos et al. 2023), so that those sums stay true.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.head import RidgeHead
from promptcl.methods import l2p
from promptcl.methods._base import Batch


class Options(l2p.Options):
    """Settings of L2P and two more."""

    adapt_tasks: int = Field(default=1, ge=0)
    """Tasks that train prompts, keys and the auxiliary linear head; later tasks only update the sums."""
    strength: float = Field(default=0.1, gt=0)
    """Ridge penalty, as a share of each feature's variance."""


class Model(l2p.Model):
    """Prompt pool, keys, an auxiliary linear head for training, and a ridge classifier."""

    Options = Options
    options: Options
    finishes = True
    tasks_done: Tensor

    def __init__(self, options: Options, width: int, generator: torch.Generator) -> None:
        """Draw prompts and keys; start the sums at zero."""
        super().__init__(options, width, generator)
        self.ridge = RidgeHead(width, options.strength)
        self.register_buffer("tasks_done", torch.zeros((), dtype=torch.long))

    @property
    def trained(self) -> bool:  # type: ignore[override]
        """True until the prompts are frozen."""
        return int(self.tasks_done) < self.options.adapt_tasks

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append rows to both heads."""
        super().grow(classes, generator)
        self.ridge.grow(classes)

    def finish(self, backbone: Backbone, batches: Iterable[Batch]) -> None:
        """Add the task's images, seen through the prompts, to the sums and solve."""
        if self.trained and int(self.tasks_done) > 0:
            raise AssertionError("unreachable with adapt_tasks <= 1")
        for batch in batches:
            self.ridge.add(self.features(backbone, batch, self.select(batch.query_BD)[0]), batch.labels_B)
        self.ridge.solve()
        self.tasks_done += 1

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Ridge logits [B, K]."""
        return self.ridge(self.features(backbone, batch, self.select(batch.query_BD)[0]))
