"""ER: experience replay, images of earlier tasks beside the new ones (Chaudhry et al. 2019, arXiv 1902.10486).

The ViT is trained, and one cross-entropy over all classes takes the mean of new and replayed images. With `asymmetric`
it is ER-ACE (Caccia et al., ICLR 2022, arXiv 2104.05025): new images compare only the classes that `train.mask` allows.
Differs from the code: one sum for both halves, whose weights are those of their images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.errors import UserError
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy
from promptcl.methods._tuned import Tuned, TunedOptions


class EROptions(TunedOptions):
    """Settings of ER."""

    asymmetric: bool = False
    """ER-ACE: the training mask holds for new images, and not for replayed ones. ER itself masks none."""


class Model(Tuned):
    """The ViT and a head."""

    about = "the ViT, head, images replayed; 1 pass"
    Options = EROptions
    options: EROptions

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train on new and remembered images."""
        if self.options.asymmetric:
            check_masked(task)
        yield Stage(task.new, replay=task.memory)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy over all classes, or over those allowed."""
        logits_BK = self.logits(backbone, batch)
        if self.options.asymmetric:
            return masked_cross_entropy(logits_BK, batch)
        return F.cross_entropy(logits_BK, batch.labels_B)


def check_masked(task: TaskView) -> None:
    """Raise UserError where no mask says which classes new images compare."""
    for batch in task.batches(task.new.select([0])):
        if batch.allowed_BK is None:
            raise UserError(
                "method.asymmetric=true masks new images, which train.mask=false and scenario=domain rule out; write "
                "method.asymmetric=false"
            )
