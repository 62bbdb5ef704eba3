"""APER: class means of the plain and an adapted feature side by side (Zhou et al., IJCV 2024, arXiv 2303.07338).

Also called ADAM. In the first task adapters, scales and shifts or prompts are trained and frozen then; a feature is the
plain class token followed by the adapted one, neither normalised by itself. With `adapt: none` it is `ncm`, which the
paper calls SimpleCIL. Differs from the code in: deep prompts are prefixes; see `train` for the optimiser.
B images, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.layers import ClassMeans, CosineHead, Rows
from promptcl.layers.adapters import Adaptation
from promptcl.methods import ncm
from promptcl.methods._first import FirstSession, FirstSessionOptions


class APEROptions(FirstSessionOptions, ncm.NCMOptions):
    """Settings of APER."""

    adapt: Adaptation = "adapter"


class Model(FirstSession, ncm.Model):
    """The mean of both features of each class."""

    about = "adapters in the first task, class means; 2 passes"
    Options = APEROptions
    options: APEROptions

    def __init__(self, options: APEROptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw what is adapted."""
        super().__init__(options, backbone, generator)
        self.adapt(backbone, generator, CosineHead(self.width))
        if self.adapted is not None:
            self.width *= 2
            self.rows, self.means = Rows(self.width, options.rows), ClassMeans(self.width)

    def query(self, backbone: Backbone, images_BCHW: Tensor) -> Tensor:
        """The plain feature and, where something is adapted, the adapted one behind it [B, F]."""
        adapted_BF = super().query(backbone, images_BCHW)
        if self.adapted is None:
            return adapted_BF
        return torch.cat([backbone.query(images_BCHW, self.options.features), adapted_BF], 1)
