"""SLCA: the whole ViT trained slowly, then a head aligned with class Gaussians (Zhang et al., ICCV 2023).

arXiv 2303.05118. ViT and a head a task are trained task by task, the ViT a hundred times slower; then a copy of all
heads is aligned with features drawn from a Gaussian of each class, and answers. The next task goes on from the heads as
they were before. `slca_lora` is SLCA++. Differs from the code: no brightness jitter.
B images, N features, D width, K classes so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.methods._align import nearer
from promptcl.methods._aligned import AlignedHeads, AlignedOptions
from promptcl.methods._base import Batch, masked_cross_entropy
from promptcl.methods._tuned import ViTOptions, slow_group, trainable


class SLCAOptions(AlignedOptions, ViTOptions):
    """Settings of SLCA."""


class Model(AlignedHeads):
    """The ViT, the heads as trained, and the aligned head."""

    about = "the ViT slowly, aligned head; 1 pass"
    Options = SLCAOptions
    options: SLCAOptions

    def __init__(self, options: SLCAOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start from the weights of the backbone, with no class."""
        super().__init__(options, backbone, generator)
        self.vit = trainable(backbone, options)
        self.begin_heads(backbone.width)

    def features(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Class token [B, D] of the trained ViT."""
        features_BD: Tensor = self.vit(batch.images_BCHW).pooled_BD
        return features_BD

    def aged(self, features_ND: Tensor, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Move what was drawn of old classes a little towards 0."""
        settings = (self.alignment.gaussians, self.task_of_class_K, self.index)
        return nearer(*settings, features_ND, labels_N, generator)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy of the heads as trained."""
        return masked_cross_entropy(self.raw(self.features(backbone, batch)), batch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The newest head at `lr`, the ViT at its share of it."""
        return [{"params": self.raw.new, "lr": lr}, *slow_group(self.vit, lr, self.options.share)]
