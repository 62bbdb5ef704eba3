"""SLCA++: a slow backbone by LoRA, and a head aligned with class Gaussians (arXiv 2408.08295; SLCA is ICCV 2023).

LoRA of queries, keys, values and both MLP layers, norms and biases are trained slowly, task by task, with a head a
task; then a copy of all heads is aligned and answers. The next task goes on from the heads as they were before.
Differs from the code in: class token and patch embedding stay frozen; the final norm is changed by a factor.
B images, N features, D width, K classes so far.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.layers.lora import LoRA, NormsAndBiases, check_rank
from promptcl.layers.losses import reverse_cross_entropy
from promptcl.methods._aligned import AlignedHeads, AlignedOptions
from promptcl.methods._base import Batch, masked_cross_entropy


class SLCALoRAOptions(AlignedOptions):
    """Settings of SLCA++."""

    rank: int = Field(default=4, ge=1)
    """Rank of LoRA."""
    first_share: float = Field(default=0.5, gt=0)
    """Learning rate of LoRA in the first task, as a share of that of the head."""
    share: float = Field(default=0.1, gt=0)
    """Learning rate of LoRA in later tasks, and of norms and biases in all, as a share of that of the head."""
    reverse: float = Field(default=0.1, ge=0)
    """Weight of the reverse cross-entropy: 0.1 for CIFAR-100 and CUB; 0.5 for ImageNet-R, `cross` too."""
    cross: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy."""
    age: float = Field(default=0.02, ge=0)
    """What is added to the scale of the features that the head of an old task reads to answer, for each task since."""


class Model(AlignedHeads):
    """LoRA, norms, biases, the heads as trained, and the aligned head."""

    about = "low-rank changes, norms and biases, aligned head; 1 pass"
    Options = SLCALoRAOptions
    options: SLCALoRAOptions

    def __init__(self, options: SLCALoRAOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start LoRA's A from the singular vectors of the weights that it changes."""
        super().__init__(options, backbone, generator)
        check_rank(options.rank, backbone)
        self.lora = LoRA(backbone, options.rank, ("qkv", "fc1", "fc2"), generator, scale=0.8)
        self.lora.start_from_weights(backbone)
        self.rest = NormsAndBiases(backbone)
        self.begin_heads(backbone.width)

    def features(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Class token [B, D] of the changed model."""
        return self.rest.last(backbone(batch.images_BCHW, [*self.lora.inserts(), *self.rest.inserts()]).pooled_BD)

    @property
    def age_K(self) -> Tensor:
        """Tasks since each class was new."""
        return self.index - self.task_of_class_K

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K] of the aligned head, whose old rows read larger features; in the alignment they do not."""
        features_BD = self.features(backbone, batch)
        return features_BD @ self.head.weight_KD.T * (1 + self.options.age * self.age_K) + self.head.bias_K

    def aged(self, features_ND: Tensor, labels_N: Tensor, generator: torch.Generator) -> Tensor:
        """Divide what was drawn of old classes by 1 + r times their age, r uniform in half to one and a half `age`."""
        r_N1 = self.options.age * (0.5 + torch.rand(len(labels_N), 1, generator=generator)).to(features_ND)
        return features_ND / (1 + r_N1 * self.age_K[labels_N, None])

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Symmetric cross-entropy of the heads as trained."""
        logits_BK = self.raw(self.features(backbone, batch))
        reverse = reverse_cross_entropy(logits_BK, batch.labels_B, batch.allowed_BK)
        return self.options.cross * masked_cross_entropy(logits_BK, batch) + self.options.reverse * reverse

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The newest head at `lr`; LoRA, norms and biases at their shares of it."""
        o = self.options
        shares = (self.lora, o.share if self.index else o.first_share), (self.rest, o.share)
        slow = [{"params": list(part.parameters()), "lr": lr * share} for part, share in shares]
        return [{"params": self.raw.new, "lr": lr}, *slow]
