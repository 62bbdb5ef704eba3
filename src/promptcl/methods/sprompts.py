"""S-Prompts, for images alone: each domain has a prompt and a head of its own (NeurIPS 2022, arXiv 2207.12819).

K-means centres of a domain's frozen features stand for it; at test the domain of the nearest centre answers. Differs
from the code in: centres are of the evaluation view, not of augmented crops; `distance: l1` is what it does at test
(K-means itself is in l2). With classes that come task by task, which is our extension, a head answers with the classes
that its task had, and gives all others a logit below them.
B images, S domains so far, L prompt tokens, C centres a domain, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone, Tokens
from promptcl.layers import GrowingLinear
from promptcl.layers.clusters import k_means
from promptcl.layers.prompts import Init, PromptOptions, groups, initialise, top_n
from promptcl.methods._base import Batch, Method, Stage, TaskView, masked_cross_entropy

_BELOW = 1e4  # how far the logit of a class that a head does not know is below those that it knows


class SPromptsOptions(PromptOptions):
    """Settings of S-Prompts."""

    length: int = Field(default=10, ge=0)
    """Tokens of a prompt, in front of block 0."""
    centres: int = Field(default=5, gt=0)
    """K-means centres of a domain."""
    distance: Literal["l2", "l1"] = "l2"
    """Distance to the centres by which the domain of a test image is told; `l1` is what the public code takes."""
    prompt_init: Init = "symmetric"
    init_scale: float = Field(default=0.0361, gt=0)


class Model(Method):
    """A prompt, centres and a linear head for each domain; those of earlier domains are frozen."""

    about = "prompts and a head a domain, cluster centres; 2 passes"
    task_prompts = True
    Options = SPromptsOptions
    options: SPromptsOptions
    past_prompts_SLD: Tensor
    centres_SCD: Tensor
    known_SK: Tensor
    """Which classes the head of a domain knows."""

    def __init__(self, options: SPromptsOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start without domains."""
        super().__init__(options, backbone, generator)
        self.prompt_1LD = nn.Parameter(torch.zeros(0, options.length, backbone.width))
        self.register_buffer("past_prompts_SLD", self.prompt_1LD.detach().clone())
        self.register_buffer("centres_SCD", torch.zeros(0, options.centres, backbone.width))
        self.register_buffer("known_SK", torch.zeros(0, 0, dtype=torch.bool))
        self.heads = nn.ModuleList()

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training; nothing is replayed, since what earlier tasks learned is frozen."""
        return ("train.",)

    def grow(self, task: TaskView) -> None:
        """Freeze what the last domain learned, and make a prompt and a head with rows for all classes so far."""
        _, o, device = task.index, self.options, self.centres_SCD.device  # refuses a stream without boundaries
        self.past_prompts_SLD = torch.cat([self.past_prompts_SLD, self.prompt_1LD.detach()])
        prompt = initialise((1, *self.prompt_1LD.shape[1:]), o.prompt_init, o.init_scale, task.generator)
        self.prompt_1LD = nn.Parameter(prompt.to(device))
        self.centres_SCD = F.pad(self.centres_SCD, (0, 0, 0, 0, 0, 1))
        self.known_SK = F.pad(self.known_SK, (0, task.new_classes, 0, 1))
        self.heads.requires_grad_(False)
        head = GrowingLinear(self.prompt_1LD.shape[2], o.head_init)
        head.grow(self.known_SK.shape[1], task.generator)
        self.heads.append(head.to(device))

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train prompt and head, without any query; then find the centres."""
        yield Stage(task.new)
        table = task.collect(lambda batch: torch.cat([batch.labels_B[:, None].float(), batch.query_BD.float()], 1))
        self.known_SK[-1, table[:, 0].long()] = True
        found_CD = k_means(F.normalize(table[:, 1:]), self.options.centres, task.generator)
        # Fewer different images than centres: centres that come twice change nothing.
        self.centres_SCD[-1] = found_CD.repeat(self.options.centres, 1)[: self.options.centres].to(self.centres_SCD)

    def choose(self, query_BD: Tensor) -> Tensor:
        """Number of the domain [B] with the centre that is nearest to the query, scaled to length 1."""
        gap_BXD = F.normalize(query_BD)[:, None] - self.centres_SCD.flatten(0, 1)
        gap_BX = gap_BXD.abs().sum(2) if self.options.distance == "l1" else gap_BXD.square().sum(2)
        domain_B = top_n(-gap_BX, 1)[:, 0] // self.options.centres
        self.stats.count("prompts", domain_B, len(self.heads))
        return domain_B

    def features(self, backbone: Backbone, batch: Batch, prompts_BLD: Tensor) -> Tensor:
        """Class token [B, D] with these prompts (one for each image, or one for all)."""
        return backbone(batch.images_BCHW, [Tokens(0, prompts_BLD)]).pooled_BD  # type: ignore[no-any-return]

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K] of the domain that each query is nearest to."""
        domain_B, classes = self.choose(batch.query_BD), self.known_SK.shape[1]
        chosen_BLD = torch.cat([self.past_prompts_SLD, self.prompt_1LD])[domain_B]
        features_BD = batch.once("prompted", lambda: self.features(backbone, batch, chosen_BLD), chosen_BLD)
        each_SBK = [head(features_BD) for head in self.heads]
        all_BSK = torch.stack([F.pad(one_BK, (0, classes - one_BK.shape[1])) for one_BK in each_SBK], 1)
        logits_BK = all_BSK.gather(1, domain_B[:, None, None].expand(-1, 1, classes))[:, 0]
        known_BK = self.known_SK[domain_B]
        lowest_B1 = logits_BK.masked_fill(~known_BK, float("inf")).amin(1, keepdim=True)
        return torch.where(known_BK, logits_BK, lowest_B1 - _BELOW)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy of the present domain's head, through its prompt."""
        return masked_cross_entropy(self.heads[-1](self.features(backbone, batch, self.prompt_1LD)), batch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head at `lr`, the prompt at `prompt_lr`."""
        return groups(self, self.heads[-1], lr, self.options.prompt_lr)
