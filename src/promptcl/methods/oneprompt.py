"""OnePrompt: one set of prefixes for all tasks, always trained, no query (OVOR, ICLR 2024, arXiv 2402.04129).

`outliers` adds OVOR's second stage: the head alone learns to give features of the task a low energy and outliers around
them a high one. `boundary` is the paper's intent (NPOS): noise around the features farthest from their neighbours;
`origin` is what the released code does: the same noise around the origin.
Differs from the code in: boundary outliers are scaled back to the length of the feature they come from; they are
drawn once a task; the second stage has a schedule of its own.
B images, L prefix rows, D width, N images of the task, O outliers, K classes so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone, Prefix
from promptcl.config import Unread
from promptcl.layers import GrowingLinear
from promptcl.layers.prompts import PromptOptions, check_layers, initialise
from promptcl.methods._base import Batch, Method, Stage, TaskView, masked_cross_entropy

_POINTS, _DRAWS, _KEPT, _NOISE = 50, 600, 40, 0.1  # for each class: features, noise vectors each, outliers; noise scale
_INSIDE, _OUTSIDE = -15.0, -3.0  # margins: highest energy of features, lowest energy of outliers


class OnePromptOptions(PromptOptions):
    """Settings of OnePrompt and OVOR."""

    layout: tuple[tuple[int, int], ...] = ((0, 5), (1, 5), (2, 20), (3, 20), (4, 20))
    """[block, rows] pairs: so many rows of keys, and as many of values, in that block (code: g length 10, e 40)."""
    init_scale: float = Field(default=1.0, gt=0)
    head_init: Literal["zero", "uniform"] = "uniform"
    outliers: Literal["none", "boundary", "origin"] = "none"
    """`none`: OnePrompt. Else OVOR: a second stage that trains the head with outliers of this kind."""
    outlier_epochs: int = Field(default=4, gt=0)
    """Epochs of the second stage; with train.epochs=16 the paper's 20 of CIFAR-100."""
    outlier_weight: float = Field(default=0.1, ge=0)
    """Weight of the two energy terms."""

    def unread(self) -> dict[str, Unread]:
        """What says how outliers are learned, where there are none."""
        why = Unread("outliers=none", "outliers=boundary")
        return {"outlier_epochs": why, "outlier_weight": why} if self.outliers == "none" else {}


class Model(Method):
    """Prefixes [2, L, D] (keys, values) in some blocks and a growing linear head on the class token."""

    Options = OnePromptOptions
    options: OnePromptOptions

    def __init__(self, options: OnePromptOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw the prefixes."""
        super().__init__(options, backbone, generator)
        check_layers([layer for layer, _ in options.layout], backbone.depth)
        shapes = [(2, rows, backbone.width) for _, rows in options.layout]
        drawn = [initialise(shape, options.prompt_init, options.init_scale, generator) for shape in shapes]
        self.prefixes_2LD = nn.ParameterList(drawn)
        self.head = GrowingLinear(backbone.width, options.head_init)
        self._outliers_OD = torch.empty(0)

    def grow(self, task: TaskView) -> None:
        """Append head rows; the prefixes never grow."""
        self.head.grow(task.new_classes, task.generator)

    def features(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Class token [B, D] with the prefixes."""
        layers = [layer for layer, _ in self.options.layout]
        inserts = [Prefix(layer, p[None, 0], p[None, 1]) for layer, p in zip(layers, self.prefixes_2LD, strict=True)]
        return backbone(batch.images_BCHW, inserts).pooled_BD  # type: ignore[no-any-return]

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.head(self.features(backbone, batch))
        return logits_BK

    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        """Train prefixes and head; with outliers, then the head alone."""
        yield Stage(task.new, replay=task.memory)
        if self.options.outliers == "none":
            return
        features_ND = task.collect(lambda batch: self.features(backbone, batch))
        labels_N = torch.as_tensor(task.new.labels, device=features_ND.device)
        classes = [features_ND[labels_N == label] for label in labels_N.unique().tolist()]
        self._outliers_OD = torch.cat([self.draw_outliers(rows_ND, task.generator) for rows_ND in classes])
        head = [{"params": list(self.head.parameters())}]
        # The outliers of a step belong to its whole batch, so one process computes it.
        yield Stage(task.new, self.outlier_loss, head, epochs=self.options.outlier_epochs, together=0)

    def draw_outliers(self, features_ND: Tensor, generator: torch.Generator) -> Tensor:
        """Outliers [O, D] of the features of one class: of many candidates those farthest from their neighbours."""
        unit_ND, length_N = F.normalize(features_ND), features_ND.norm(dim=1)
        near = min(_POINTS, len(unit_ND))
        edge = torch.cdist(unit_ND, unit_ND).kthvalue(near, dim=1).values.topk(near).indices
        noise = _NOISE * torch.randn(near * _DRAWS, unit_ND.shape[1], generator=generator).to(unit_ND.device)
        if self.options.outliers == "boundary":
            noise += unit_ND[edge].repeat_interleave(_DRAWS, 0)
        best = torch.cdist(noise, unit_ND).kthvalue(near, dim=1).values.topk(min(_KEPT, len(noise))).indices
        return noise[best] if self.options.outliers == "origin" else noise[best] * length_N[edge[best // _DRAWS], None]

    def outlier_loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and the energies of features and of as many outliers on their sides of a margin (Huber)."""
        with torch.no_grad():
            inside_BD = self.features(backbone, batch)
        drawn_B = torch.randint(len(self._outliers_OD), (len(inside_BD),), generator=batch.generator)
        outside_BD = self._outliers_OD[drawn_B.to(inside_BD.device)]
        logits_BK = self.head(inside_BD)
        inside_B, outside_B = energy(logits_BK, batch), energy(self.head(outside_BD), batch)
        too_high, too_low = F.relu(inside_B - _INSIDE), F.relu(_OUTSIDE - outside_B)
        margins = F.huber_loss(too_high, torch.zeros_like(too_high)) + F.huber_loss(too_low, torch.zeros_like(too_low))
        return masked_cross_entropy(logits_BK, batch) + self.options.outlier_weight * margins


def energy(logits_BK: Tensor, batch: Batch) -> Tensor:
    """Energy [B] of logits: minus their log-sum-exp over the classes that the batch allows."""
    if batch.allowed_BK is not None:
        logits_BK = logits_BK.masked_fill(~batch.allowed_BK, float("-inf"))
    return -logits_BK.logsumexp(1)
