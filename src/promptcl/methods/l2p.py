"""L2P: a pool of prompts chosen by key-query matching (Wang et al., CVPR 2022, arXiv 2112.08654).

Differs from the paper in: the head grows with the classes (an unseen class cannot win an intermediate evaluation); for
one learning rate per parameter see `prompt_lr`. Where paper and public code disagree, the paper is the default and the
code is an option.
M pool size, N selected, L prompt tokens, B images, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from promptcl.backbone import Backbone, Features, Tokens
from promptcl.config import Unread
from promptcl.layers import GrowingLinear, PromptPool, Sum
from promptcl.layers.prompts import Init, PromptOptions, initialise, rarely_chosen, top_n, vote
from promptcl.methods._base import Batch, Method, Stage, TaskView, masked_cross_entropy


class L2POptions(PromptOptions):
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
    diversify: Literal["none", "frequency", "slots"] = "none"
    """How later tasks get other prompts, in training only. `frequency` (paper, eq. 4): the distance 1 - cosine is
    multiplied by h_m, the share of prompt m in all selections of earlier tasks' training. `slots` (public code): task
    t takes prompts t*N .. t*N+N-1 whatever the queries say; beyond the pool it selects freely."""
    copy_slots: bool = True
    """With `slots`: a task starts from the prompts of the task before (not the keys), as in the public code."""
    key_init: Init = "uniform"
    """Values that a key starts with, as `prompt_init` with `key_scale`."""
    key_scale: float = Field(default=0.01, gt=0)
    """Scale of the values that a key starts with."""
    position: Literal["none", "class"] = "none"
    """`class`: add the frozen position vector of the class token to every prompt token (first release, l2p-pytorch)."""
    pooling: Literal["prompt", "class"] = "prompt"
    """What the head reads: mean of the prompt outputs (paper, f_avg), or the class token."""
    train_prompts: bool = True
    """False: prompts keep their initial values; only keys and head are trained (ablation)."""

    def unread(self) -> dict[str, Unread]:
        """The size of a vote where none is held, slots where there are none, a rate where nothing is trained by it."""
        found = {} if self.vote == "batch" else {"vote_size": Unread("vote=image", "vote=batch")}
        if self.diversify != "slots":
            found["copy_slots"] = Unread(f"diversify={self.diversify}", "diversify=slots")
        if not self.train_prompts:
            found["prompt_lr"] = Unread("train_prompts=false", "train_prompts=true")
        return found

    @model_validator(mode="after")
    def _pool_holds_selection(self) -> L2POptions:
        if self.top_k > self.pool_size:
            raise ValueError(f"top_k={self.top_k} is more than pool_size={self.pool_size}")
        return self


class Model(Method):
    """Prompt pool, keys and a growing linear head."""

    about = "a pool of prompts with keys, head; 2 passes"
    Options = L2POptions
    options: L2POptions
    frequency_M: Tensor
    slots_N: Tensor

    def __init__(self, options: L2POptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw prompts [M, L, D] and keys [M, D]."""
        super().__init__(options, backbone, generator)
        o, width = options, backbone.width
        prompts_MLD = initialise((o.pool_size, o.prompt_length, width), o.prompt_init, o.init_scale, generator)
        self.pool = PromptPool(prompts_MLD, initialise((o.pool_size, width), o.key_init, o.key_scale, generator))
        self.pool.prompts_MLD.requires_grad_(o.train_prompts)
        self.head = GrowingLinear(width, o.head_init)
        self.together = o.vote_size if o.vote == "batch" else 1
        # Selections in training so far, and the h of eq. 4, which a task keeps from its start to its end.
        self.chosen_M = Sum(o.pool_size, dtype=torch.long, persistent=o.diversify == "frequency")
        self.register_buffer("frequency_M", torch.ones(o.pool_size), o.diversify == "frequency")
        self.register_buffer("slots_N", torch.zeros(0, dtype=torch.long), persistent=False)

    def grow(self, task: TaskView) -> None:
        """Append head rows; the pool never grows."""
        if self.options.diversify != "none":
            _ = task.index  # refuses a stream that has no boundaries between tasks
        self.head.grow(task.new_classes, task.generator)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Fix h (eq. 4), or the slots of the task, then train prompts, keys and head on its images."""
        if self.options.diversify == "frequency" and self.chosen_M.value.any():
            self.frequency_M = self.chosen_M.value / self.chosen_M.value.sum()
        if self.options.diversify == "slots":
            self._take_slots(task)
        yield Stage(task.new, replay=task.memory)

    def _take_slots(self, task: TaskView) -> None:
        """Set the N prompts that this task trains, and with `copy_slots` their initial values."""
        o = self.options
        first, last = task.index * o.top_k, (task.index + 1) * o.top_k
        if last > o.pool_size:
            self.slots_N = self.slots_N[:0]
            task.warn(
                f"task {task.index + 1} selects freely: its slots {first} to {last - 1} are beyond the pool of "
                f"{o.pool_size}; method.pool_size={last} would hold them"
            )
            return
        self.slots_N = torch.arange(first, last, device=self.slots_N.device)
        if o.copy_slots and task.index > 0:
            self.pool.prompts_MLD[first:last] = self.pool.prompts_MLD[first - o.top_k : first].clone()

    def select(self, query_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen ids [B, N] and cosine of every query with every key [B, M] (eq. 3)."""
        o, similarity_BM = self.options, self.pool.match(query_BD)
        if self.training and len(self.slots_N):
            index_BN = self.slots_N.expand(len(query_BD), -1)
        elif self.training and o.diversify == "frequency":
            index_BN = rarely_chosen(similarity_BM.detach(), self.frequency_M, o.top_k)
        else:
            index_BN = top_n(similarity_BM.detach(), o.top_k)
        if o.vote == "batch":
            index_BN = vote(index_BN, o.pool_size, o.vote_size)
        if self.training:
            self.chosen_M.add_rows(index_BN.flatten(), torch.ones_like(index_BN).flatten())
        self.stats.count("prompts", index_BN, o.pool_size)
        self.stats.mean("cosine", similarity_BM.gather(1, index_BN))
        return index_BN, similarity_BM

    def choose(self, batch: Batch) -> Tensor:
        """Chosen ids [B, N] of images that are tested or added up; a pool of one prompt needs no query."""
        if self.options.pool_size > 1:
            return self.select(batch.query_BD)[0]
        index_B1 = torch.zeros_like(batch.labels_B)[:, None]
        self.stats.count("prompts", index_B1, 1)
        return index_B1

    def inserts(self, backbone: Backbone, index_BN: Tensor) -> list[Tokens]:
        """The prompts `index_BN`, in front of block 0 (eq. 2)."""
        tokens_BPD = self.pool.take(index_BN)
        if self.options.position == "class":
            tokens_BPD = tokens_BPD + backbone.class_position_D
        return [Tokens(0, tokens_BPD)]

    def features(self, backbone: Backbone, batch: Batch, index_BN: Tensor) -> Tensor:
        """Feature [B, D] that the head reads, seen through the prompts `index_BN` (f_avg)."""
        out: Features = backbone(batch.images_BCHW, self.inserts(backbone, index_BN))
        return out.pooled_BD if self.options.pooling == "class" else out.prompts_BPD.mean(1)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(self.features(backbone, batch, self.choose(batch)))
        return logits_BK

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy minus lambda times the cosines to the selected keys, summed over N, averaged over B (eq. 5)."""
        index_BN, similarity_BM = self.select(batch.query_BD)
        logits_BK = self.head(self.features(backbone, batch, index_BN))
        pull = similarity_BM.gather(1, index_BN).sum(1).mean()
        return masked_cross_entropy(logits_BK, batch) - self.options.pull * pull

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Keys and head at `lr`, prompts at `prompt_lr`."""
        rest: list[nn.Parameter] = [self.pool.keys_MD, *self.head.parameters()]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": lr}]
        if self.pool.prompts_MLD.requires_grad:
            groups.append({"params": [self.pool.prompts_MLD], "lr": self.options.prompt_lr or lr})
        return groups
