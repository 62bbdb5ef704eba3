"""DualPrompt: a general prompt for all tasks and an expert prompt with a key for each (ECCV 2022, arXiv 2204.04799).

Both are prefixes: rows of keys and of values in front of those of the tokens. While a task is learned its own expert
serves every image; at test the key nearest to the image's query names the expert.
Differs from the release in: experts and keys are made when their task begins, so keys of tasks to come cannot win;
images choose one by one (`vote: batch` is what its CIFAR-100 file does). Lengths are rows of keys, as in the release.
B images, L prefix rows, D width, S tasks so far, G and E prefixed layers, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone, Prefix
from promptcl.config import Unread
from promptcl.layers import GrowingLinear, cosine
from promptcl.layers.prompts import PromptOptions, check_layers, groups, initialise, top_n, vote
from promptcl.methods._alignable import Alignable, AlignableOptions
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy


class DualPromptOptions(PromptOptions, AlignableOptions):
    """Settings of DualPrompt; names of the release in brackets."""

    g_layers: tuple[int, ...] = (0, 1)
    """Blocks with the general prompt, from 0."""
    g_length: int = Field(default=5, ge=0)
    """Rows of keys, and of values, of the general prompt in each of its blocks."""
    e_layers: tuple[int, ...] = (2, 3, 4)
    """Blocks with the expert prompt."""
    e_length: int = Field(default=5, ge=0)
    """Rows of the expert prompt: 5 for CIFAR-100, 20 for ImageNet-R."""
    pull: float = Field(default=1.0, ge=0)
    """Weight of the cosine between queries and the key of their task [lambda]; 0: keys are not trained."""
    copy_slots: bool = True
    """A task starts from the expert of the task before (not from its key), as in the release."""
    key_scale: float = Field(default=0.01, gt=0)
    """Keys start uniform between 0 and this."""
    vote: Literal["image", "batch"] = "image"
    """`image`: every image takes the expert of its own nearest key. `batch`: majority vote within a group at test, as
    the release does on CIFAR-100; a prediction then depends on its neighbours."""
    vote_size: int = Field(default=24, gt=0)
    """Images that vote together with `vote: batch`."""

    def unread(self) -> dict[str, Unread]:
        """The size of a vote, where none is held."""
        own = {} if self.vote == "batch" else {"vote_size": Unread("vote=image", "vote=batch")}
        return {**super().unread(), **own}


class Model(Alignable):
    """General prefixes, an expert and a key a task, and a growing linear head on the class token."""

    about = "a shared prefix, a prefix and a key a task, head; 2 passes"
    task_prompts = True
    Options = DualPromptOptions
    options: DualPromptOptions
    past_experts_SE2LD: Tensor
    past_keys_SD: Tensor

    def __init__(self, options: DualPromptOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw the general prefixes; experts come with the tasks."""
        super().__init__(options, backbone, generator)
        o, width = options, backbone.width
        check_layers((*o.g_layers, *o.e_layers), backbone.depth)
        shape = (len(o.g_layers), 2, o.g_length, width)
        self.general_G2LD = nn.Parameter(initialise(shape, o.prompt_init, o.init_scale, generator))
        # Those of the present task (none before the first); past ones are buffers, so that nothing trains them.
        self.expert_1E2LD = nn.Parameter(torch.zeros(0, len(o.e_layers), 2, o.e_length, width))
        self.key_1D = nn.Parameter(torch.zeros(0, width))
        self.register_buffer("past_experts_SE2LD", self.expert_1E2LD.detach().clone())
        self.register_buffer("past_keys_SD", self.key_1D.detach().clone())
        self.begin_head(GrowingLinear(width, o.head_init), width)
        self.together = o.vote_size if o.vote == "batch" else 1

    @classmethod
    def reads(cls, options: DualPromptOptions) -> tuple[str, ...]:
        """Training; an old image would belong to another expert, so none is replayed."""
        return ("train.",)

    def grow(self, task: TaskView) -> None:
        """Add the last task's expert and key to the past ones, and draw new ones."""
        _, o = task.index, self.options  # refuses a stream without boundaries, as each task has an expert
        self.past_experts_SE2LD = torch.cat([self.past_experts_SE2LD, self.expert_1E2LD.detach()])
        self.past_keys_SD = torch.cat([self.past_keys_SD, self.key_1D.detach()])
        expert = initialise((1, *self.expert_1E2LD.shape[1:]), o.prompt_init, o.init_scale, task.generator)
        key = initialise((1, self.key_1D.shape[1]), "uniform", o.key_scale, task.generator)
        self.expert_1E2LD, self.key_1D = (nn.Parameter(t.to(self.key_1D.device)) for t in (expert, key))
        self.grow_head(task)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Begin with the values of the last expert, then train general prefixes, expert, key and head."""
        if self.options.copy_slots and len(self.past_experts_SE2LD):
            self.expert_1E2LD.copy_(self.past_experts_SE2LD[-1:])
        yield Stage(task.new)
        yield from self.align(backbone, task)

    def choose(self, query_BD: Tensor) -> Tensor:
        """Number of the task [B] whose key is nearest to each query."""
        similarity_BS = cosine(query_BD, torch.cat([self.past_keys_SD, self.key_1D]))
        slot_B1 = top_n(similarity_BS, 1)
        if self.options.vote == "batch":
            slot_B1 = vote(slot_B1, similarity_BS.shape[1], self.options.vote_size)
        self.stats.count("prompts", slot_B1, similarity_BS.shape[1])
        self.stats.mean("cosine", similarity_BS.gather(1, slot_B1))
        return slot_B1[:, 0]

    def features(self, backbone: Backbone, batch: Batch, expert_BE2LD: Tensor) -> Tensor:
        """Class token [B, D] with the general prefixes and these experts (one for each image, or one for all)."""
        o = self.options
        inserts = [
            *(Prefix(layer, p[None, 0], p[None, 1]) for layer, p in zip(o.g_layers, self.general_G2LD, strict=True)),
            *(Prefix(layer, expert_BE2LD[:, i, 0], expert_BE2LD[:, i, 1]) for i, layer in enumerate(o.e_layers)),
        ]
        return backbone(batch.images_BCHW, inserts).pooled_BD  # type: ignore[no-any-return]

    def seen(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Class token [B, D], each image seen through the expert that its query chooses."""
        experts_SE2LD = torch.cat([self.past_experts_SE2LD, self.expert_1E2LD])
        return self.features(backbone, batch, experts_SE2LD[self.choose(batch.query_BD)])

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy through the task's own expert, minus lambda times the mean cosine of queries and its key."""
        loss = masked_cross_entropy(self.head(self.features(backbone, batch, self.expert_1E2LD)), batch)
        return loss - self.options.pull * cosine(batch.query_BD, self.key_1D).mean() if self.options.pull else loss

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head at `lr`, the rest at `prompt_lr`."""
        return groups(self, self.head, lr, self.options.prompt_lr)
