"""GDumb: after each task the ViT and a new head, trained on the balanced memory alone (Prabhu et al., ECCV 2020).

What was trained before is forgotten on purpose: every task starts from the pre-trained weights. Differs from the code:
the ViT is pre-trained, no CutMix, the schedule of `train`, and an accuracy after the last epoch, not the best of all.
`memory.total=500 memory.rule=greedy` is its sampler; the release takes the first images of each class instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from promptcl.backbone import Backbone
from promptcl.errors import UserError
from promptcl.methods._base import Stage, TaskView
from promptcl.methods._tuned import Tuned, TunedOptions, start_again


class Model(Tuned):
    """The ViT and a head."""

    about = "the ViT and head, anew from the memory; 1 pass"
    Options = TunedOptions

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Fill the memory first, then train on it from the start."""
        memory = task.remember()
        if memory is None:
            raise UserError("method.name=gdumb learns from its memory alone; write memory.per_class=10")
        start_again(self.vit, backbone)
        self.new_head(task.generator)
        yield Stage(memory)
