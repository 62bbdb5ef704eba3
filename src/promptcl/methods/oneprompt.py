"""OnePrompt: one set of prefixes for all tasks, always trained, no query (OVOR, ICLR 2024, arXiv 2402.04129).

`outliers` adds OVOR's second stage: the head alone learns to give features of the task a low energy and outliers around
them a high one. `boundary` is the paper's intent (NPOS): noise around the features farthest from their neighbours;
`origin` what the released code does: noise around the origin. SinglePrompt (arXiv 2604.04420) is recipe singleprompt.
Differs from the code in: boundary outliers are scaled back to the length of the feature they come from, and those at
the origin are distinct draws, not copies of 600; drawn once a task, of evaluation views; stage two has its own rates.
B images, L prefix rows, D width, N images of the task, O outliers, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone, Prefix
from promptcl.config import Unread
from promptcl.layers import GrowingCosine, GrowingLinear
from promptcl.layers.outliers import draw_outliers, energy, margin_loss
from promptcl.layers.prompts import PromptOptions, check_layers, groups, initialise
from promptcl.methods._alignable import Alignable, AlignableOptions
from promptcl.methods._base import Batch, Stage, TaskView, masked_cross_entropy


class OnePromptOptions(PromptOptions, AlignableOptions):
    """Settings of OnePrompt and OVOR."""

    layout: tuple[tuple[int, int], ...] = ((0, 5), (1, 5), (2, 20), (3, 20), (4, 20))
    """[block, rows] pairs: so many rows of keys, and as many of values, in that block (code: g length 10, e 40)."""
    init_scale: float = Field(default=1.0, gt=0)
    position: Literal["none", "class"] = "none"
    """`class`: add the frozen position vector of the class token to every row (SinglePrompt)."""
    head: Literal["linear", "cosine"] = "linear"
    """`cosine`: logits are cosines over `temperature`, without bias (SinglePrompt); `head_init` is then `uniform`."""
    temperature: float = Field(default=0.1, gt=0)
    """What cosines are divided by."""
    head_init: Literal["zero", "uniform"] = "uniform"
    outliers: Literal["none", "boundary", "origin"] = "none"
    """`none`: OnePrompt. Else OVOR: a second stage that trains the head with outliers of this kind."""
    outlier_epochs: int = Field(default=4, gt=0)
    """Epochs of the second stage; with train.epochs=16 the paper's 20 of CIFAR-100."""
    outlier_weight: float = Field(default=0.1, ge=0)
    """Weight of the two energy terms."""

    def unread(self) -> dict[str, Unread]:
        """What says how outliers are learned, where there are none, and what belongs to the other head."""
        found = super().unread()
        found |= {"temperature": Unread("head=linear", "head=cosine")} if self.head == "linear" else {}
        if self.head == "cosine" and self.head_init != "uniform":
            found["head_init"] = Unread("head=cosine", "head=linear")
        if self.outliers == "none":
            found |= dict.fromkeys(("outlier_epochs", "outlier_weight"), Unread("outliers=none", "outliers=boundary"))
        return found


class Model(Alignable):
    """Prefixes [2, L, D] (keys, values) in some blocks and a growing linear head on the class token."""

    about = "a prefix, head; 1 pass"
    Options = OnePromptOptions
    options: OnePromptOptions

    def __init__(self, options: OnePromptOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw the prefixes."""
        super().__init__(options, backbone, generator)
        o, width = options, backbone.width
        check_layers([layer for layer, _ in o.layout], backbone.depth)
        drawn = [initialise((2, rows, width), o.prompt_init, o.init_scale, generator) for _, rows in o.layout]
        self.prefixes_2LD = nn.ParameterList(drawn)
        head = GrowingCosine(width, o.temperature) if o.head == "cosine" else GrowingLinear(width, o.head_init)
        self.begin_head(head, width)
        self._outliers_OD = torch.empty(0)

    def grow(self, task: TaskView) -> None:
        """Append head rows; the prefixes never grow."""
        self.grow_head(task)

    def features(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Class token [B, D] with the prefixes."""
        inserts = []
        for (layer, _), rows_2LD in zip(self.options.layout, self.prefixes_2LD, strict=True):
            moved_2LD = rows_2LD + backbone.class_position_D if self.options.position == "class" else rows_2LD
            inserts.append(Prefix(layer, moved_2LD[None, 0], moved_2LD[None, 1]))
        return backbone(batch.images_BCHW, inserts).pooled_BD  # type: ignore[no-any-return]

    def seen(self, backbone: Backbone, batch: Batch) -> Tensor:
        """As `features`."""
        return self.features(backbone, batch)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head at `lr`, the rest at `prompt_lr`."""
        return groups(self, self.head, lr, self.options.prompt_lr)

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train prefixes and head; with outliers, and to align it, then the head alone."""
        yield Stage(task.new, replay=task.memory)
        kind = self.options.outliers
        if kind != "none":
            features_ND = task.collect(lambda batch: self.features(backbone, batch))
            labels_N = torch.as_tensor(task.new.labels, device=features_ND.device)
            classes = [features_ND[labels_N == label] for label in labels_N.unique().tolist()]
            self._outliers_OD = torch.cat([draw_outliers(rows_ND, kind, task.generator) for rows_ND in classes])
            head = [{"params": list(self.head.parameters())}]
            # The outliers of a step belong to its whole batch, so one process computes it.
            yield Stage(task.new, self.outlier_loss, head, epochs=self.options.outlier_epochs, together=0)
        yield from self.align(backbone, task)

    def outlier_loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and the energies of features and of as many outliers on their sides of a margin (Huber)."""
        with torch.no_grad():
            inside_BD = self.features(backbone, batch)
        drawn_B = torch.randint(len(self._outliers_OD), (len(inside_BD),), generator=batch.generator)
        outside_BD = self._outliers_OD[drawn_B.to(inside_BD.device)]
        logits_BK, allowed_BK = self.head(inside_BD), batch.allowed_BK
        margins = margin_loss(energy(logits_BK, allowed_BK), energy(self.head(outside_BD), allowed_BK))
        return masked_cross_entropy(logits_BK, batch) + self.options.outlier_weight * margins
