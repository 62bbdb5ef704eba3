"""GDumb: after each task the ViT and a new head, trained on the balanced memory alone (Prabhu et al., ECCV 2020).

What was trained before is forgotten on purpose: every task starts from the pre-trained weights. Differs from the code:
the ViT is pre-trained, and the accuracy is that after the last epoch, not the best of all. `method.cutmix=0.5` and
`train.schedule=restarts` are its training, `memory.total=500 memory.rule=greedy` its sampler; the release takes the
first images of each class instead. B images, C channels, H W pixels, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.errors import UserError
from promptcl.methods._base import Batch, Stage, TaskView
from promptcl.methods._tuned import Tuned, TunedOptions, start_again
from promptcl.runtime.device import send


class GDumbOptions(TunedOptions):
    """Settings of GDumb."""

    cutmix: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps in which a rectangle of each image is that of another one: 0.5 in the code."""


class Model(Tuned):
    """The ViT and a head."""

    about = "the ViT and head, anew from the memory; 1 pass"
    Options = GDumbOptions
    options: GDumbOptions
    masked = False

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Fill the memory first, then train on it from the start."""
        memory = task.remember()
        if memory is None:
            raise UserError("method.name=gdumb learns from its memory alone; write memory.per_class=10")
        start_again(self.vit, backbone)
        self.new_head(task.generator)
        # what is cut out of an image depends on its neighbours, so one process computes a batch
        yield Stage(memory, together=0 if self.options.cutmix else 1, fresh=True)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy over all classes; with CutMix, of both images that are in one, by how much there is of each."""
        cutmix = self.options.cutmix
        if not cutmix or float(torch.rand((), generator=batch.generator)) >= cutmix:
            return F.cross_entropy(self.logits(backbone, batch), batch.labels_B)
        images_BCHW, other_B, share = cut_and_mix(batch.images_BCHW, batch.generator)
        logits_BK = self.head(self.vit(images_BCHW).pooled_BD)
        own, others = (F.cross_entropy(logits_BK, labels_B) for labels_B in (batch.labels_B, batch.labels_B[other_B]))
        return share * own + (1 - share) * others


def cut_and_mix(images_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Images with a rectangle of another one in each, who that is [B], and the share of an image that is its own.

    One rectangle for all, of the height and width of the image times sqrt(1 - u), u uniform in [0, 1), around a uniform
    point and cut at the border (CutMix, Yun et al. 2019, with alpha 1).
    """
    height, width = images_BCHW.shape[2:]
    u, y, x = torch.rand(3, generator=generator).tolist()
    rows, columns = (_around(at, side, (1 - u) ** 0.5) for at, side in ((y, height), (x, width)))
    other_B = send(torch.randperm(len(images_BCHW), generator=generator), images_BCHW.device)
    mixed_BCHW = images_BCHW.clone()
    mixed_BCHW[:, :, rows, columns] = images_BCHW[other_B][:, :, rows, columns]
    gone = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed_BCHW, other_B, 1 - gone / (height * width)


def _around(at: float, side: int, share: float) -> slice:
    """A span of `share` of a side, in pixels, around `at` of it, without what is beyond the border."""
    middle, half = int(at * side), int(side * share) // 2
    return slice(max(0, middle - half), min(side, middle + half))
