"""RanPAC: ridge regression on randomly projected frozen features (McDonnell et al., NeurIPS 2023, arXiv 2307.02251).

With `adapt`, adapters or prompts are trained in the first task and frozen then (their phase 1). Differs from the
release: regression is centred, with an intercept, and the strength of its penalty is chosen from the sums of all tasks
(`RidgeHead`), not on a fifth of the newest one, so the classifier is the same for any order of tasks; classes count
alike (`balance`), in the release images do; prompts are prefixes. The release trains phase 1 with a cosine head.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config import Unread
from promptcl.layers import CosineHead, GrowingLinear, Penalty, RidgeHead
from promptcl.methods import ridge
from promptcl.methods._first import FirstSession, FirstSessionOptions


class RanPACOptions(FirstSessionOptions, ridge.RidgeOptions):
    """Settings of RanPAC."""

    width: int = Field(default=1300, ge=0)
    """Length of the random projection; the paper takes 10,000. 0: none, the features themselves. The sums take its
    square times 4 bytes in the store: with 100 classes 9 MB in all."""
    centred: bool = True
    """Regression with an intercept; the paper's has none."""
    penalty: Penalty = "mean"
    """As of `ridge`; `absolute` is the paper's, for directions from N(0, 1): a share 1 / F of it is added here."""
    training_head: Literal["linear", "cosine"] = "linear"
    """Head that trains what is adapted, and is read no more; the release has a cosine one, with a trained scale."""

    def unread(self) -> dict[str, Unread]:
        """The training head, where nothing is adapted."""
        idle = {"training_head": Unread("adapt=none", "adapt=adapter")} if self.adapt == "none" else {}
        return {**super().unread(), **idle}


class Model(FirstSession, ridge.Model):
    """A ridge classifier on max(0, f W), W a fixed random matrix."""

    about = "random features and ridge in closed form (adapters in the first task if asked); 1 pass"
    Options: ClassVar[type[ridge.RidgeOptions]] = RanPACOptions
    options: RanPACOptions
    directions_FM: Tensor

    def __init__(self, options: RanPACOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw the directions from N(0, 1 / F) and what is adapted; both are functions of the seed."""
        super().__init__(options, backbone, generator)
        directions_FM = torch.randn(self.width, options.width, generator=generator) / self.width**0.5
        self.register_buffer("directions_FM", directions_FM, persistent=False)
        made = CosineHead if options.training_head == "cosine" else GrowingLinear
        self.adapt(backbone, generator, made(self.width))

    @property
    def lifted(self) -> int:
        """Length of what the regression reads."""
        return self.options.width or self.width

    def new_head(self) -> RidgeHead:
        """Make a head without classes; an absolute penalty is meant for directions from N(0, 1), as the paper's."""
        o, strength = self.options, self.options.strength
        if strength is not None and o.penalty == "absolute" and o.width:
            strength /= self.width
        return RidgeHead(self.lifted, strength, o.penalty, o.centred, sums=not self.rows.keeping)

    def lift(self, features_BF: Tensor) -> Tensor:
        """Project features, where a projection is asked for."""
        return F.relu(features_BF @ self.directions_FM) if self.options.width else features_BF
