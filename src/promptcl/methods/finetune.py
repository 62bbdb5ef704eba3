"""Finetune: the ViT and a head, trained task by task with nothing against forgetting (baseline, FT-seq of L2P).

Its result depends on two settings more than methods differ: the learning rate of the ViT (`share`) and the training
mask (`train.mask`). So it stands in no table without both; see the recipes `finetune` and `finetune-slow`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from promptcl.backbone import Backbone
from promptcl.methods._base import Stage, TaskView
from promptcl.methods._tuned import Tuned, TunedOptions


class Model(Tuned):
    """The ViT and a head."""

    about = "the ViT, head; 1 pass"
    Options = TunedOptions

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training; nothing is replayed (`er` is the same with images of earlier tasks)."""
        return ("train.",)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train on the new images."""
        yield Stage(task.new)
