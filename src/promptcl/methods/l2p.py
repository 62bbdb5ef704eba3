"""L2P: a pool of prompts chosen by key-query matching (Wang et al., CVPR 2022, arXiv 2112.08654).

Differs from the paper in: the head grows with the classes (an unseen class cannot win an intermediate evaluation); for
one learning rate per parameter see `prompt_lr`. Where paper and public code disagree, the paper is the default and the
code is an option.
M pool size, N selected, L prompt tokens, B images, D width, K classes so far.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from promptcl.backbone import Backbone, Features, Prompt
from promptcl.config import Section
from promptcl.head import GrowingLinear
from promptcl.methods._base import Batch, Method, masked_cross_entropy
from promptcl.prompts import Init, PromptPool, initialise, top_n, vote


class L2POptions(Section):
    """Settings of L2P; symbols of the paper in brackets."""

    pool_size: int = Field(default=10, gt=0)
    """Prompts in the pool [M]."""
    top_k: int = Field(default=5, gt=0)
    """Prompts selected for an image [N]."""
    prompt_length: int = Field(default=5, gt=0)
    """Tokens a prompt [L_p]."""
    pull: float = Field(default=0.5, ge=0)
    """Weight of the pull term [lambda]."""
    vote: Literal["image", "batch"] = "image"
    """`image`: every image takes its own prompts (paper). `batch`: majority vote within a group, as the public code
    does; a prediction then depends on its neighbours, and test batches from one task leak the task."""
    vote_size: int = Field(default=16, gt=0)
    """Images that vote together with `vote: batch`; independent of the batch size."""
    prompt_init: Init = "uniform"
    init_scale: float = Field(default=0.01, gt=0)
    key_init: Init = "uniform"
    key_scale: float = Field(default=0.01, gt=0)
    position: Literal["none", "class"] = "none"
    """`class`: add the frozen position vector of the class token to every prompt token (first release, l2p-pytorch)."""
    head_init: Literal["zero", "uniform"] = "zero"
    pooling: Literal["prompt", "class"] = "prompt"
    """What the head reads: mean of the prompt outputs (paper, f_avg), or the class token."""
    train_prompts: bool = True
    """False: prompts keep their initial values; only keys and head are trained (ablation)."""
    prompt_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the prompts; None takes the one of everything else."""

    @model_validator(mode="after")
    def _pool_holds_selection(self) -> L2POptions:
        if self.top_k > self.pool_size:
            raise ValueError(f"top_k={self.top_k} is more than pool_size={self.pool_size}")
        return self


class Model(Method):
    """Prompt pool, keys and a growing linear head."""

    Options = L2POptions
    options: L2POptions
    counts_M: Tensor

    def __init__(self, options: L2POptions, width: int, generator: torch.Generator) -> None:
        """Draw prompts [M, L, D] and keys [M, D]."""
        super().__init__(options, width, generator)
        o = options
        prompts_MLD = initialise((o.pool_size, o.prompt_length, width), o.prompt_init, o.init_scale, generator)
        self.pool = PromptPool(prompts_MLD, initialise((o.pool_size, width), o.key_init, o.key_scale, generator))
        self.pool.prompts_MLD.requires_grad_(o.train_prompts)
        self.head = GrowingLinear(width, o.head_init)
        self.group = o.vote_size if o.vote == "batch" else 1
        self.register_buffer("counts_M", torch.zeros(o.pool_size, dtype=torch.long), persistent=False)

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Append head rows; the pool never grows."""
        self.head.grow(classes, generator)

    def select(self, query_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen ids [B, N] and cosine of every query with every key [B, M] (eq. 3)."""
        similarity_BM = self.pool.match(query_BD)
        index_BN = top_n(similarity_BM.detach(), self.options.top_k)
        if self.options.vote == "batch":
            index_BN = vote(index_BN, self.options.pool_size, self.options.vote_size)
        self.counts_M.scatter_add_(0, index_BN.flatten(), torch.ones_like(index_BN).flatten())
        return index_BN, similarity_BM

    def features(self, backbone: Backbone, batch: Batch, index_BN: Tensor) -> Tensor:
        """Feature [B, D] that the head reads, with prompts `index_BN` in front of block 0 (eq. 2 and f_avg)."""
        assert batch.images_BCHW is not None
        tokens_BPD = self.pool.take(index_BN)
        if self.options.position == "class":
            tokens_BPD = tokens_BPD + backbone.class_position_D
        out: Features = backbone(batch.images_BCHW, [Prompt(0, tokens_BPD)])
        return out.pooled_BD if self.options.pooling == "class" else out.prompts_BPD.mean(1)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(self.features(backbone, batch, self.select(batch.query_BD)[0]))
        return logits_BK

    def loss(self, backbone: Backbone, batch: Batch, present_K: Tensor | None) -> Tensor:
        """Cross-entropy minus lambda times the cosines to the selected keys, summed over N, averaged over B (eq. 5)."""
        index_BN, similarity_BM = self.select(batch.query_BD)
        logits_BK = self.head(self.features(backbone, batch, index_BN))
        pull = similarity_BM.gather(1, index_BN).sum(1).mean()
        return masked_cross_entropy(logits_BK, batch.labels_B, present_K) - self.options.pull * pull

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Keys and head at `lr`, prompts at `prompt_lr`."""
        rest: list[nn.Parameter] = [self.pool.keys_MD, *self.head.parameters()]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": lr}]
        if self.pool.prompts_MLD.requires_grad:
            groups.append({"params": [self.pool.prompts_MLD], "lr": self.options.prompt_lr or lr})
        return groups

    def pop_selections(self) -> list[int]:
        """Selections of each prompt since the last call."""
        counts: list[int] = self.counts_M.tolist()
        self.counts_M.zero_()
        return counts
