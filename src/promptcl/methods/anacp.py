"""AnaCP: features moved to prototypes in closed form, then random features and ridge (NeurIPS 2025, arXiv 2511.13880).

A layer, several ridge regressions on random features onto prototypes that are spread apart, adapts the frozen feature;
a classifier on top is solved from what is drawn of a Gaussian of each class. No gradients but in a first session.
Differs from the code in: the covariance is the pooled one whatever the order of tasks (the code counts the newest task
twice); directions of no variance are not spread; what is drawn of a class depends on the seed and the class alone.
B images, D width, H heads, M random features, K classes so far.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.layers import ClassGaussians, GrowingLinear, Sum, SymmetricSum
from promptcl.layers.spread import prototypes, solved
from promptcl.methods._base import Batch
from promptcl.methods._first import FirstSessionOptions, SumsOnly


class AnaCPOptions(FirstSessionOptions):
    """Settings of AnaCP."""

    heads: int = Field(default=3, ge=1)
    """Regressions whose mean is the adapted feature."""
    width: int = Field(default=1000, ge=1)
    """Random features of each regression, and of the classifier; the paper takes 5,000."""
    spread: float = Field(default=1.0, ge=0)
    """What is added to the singular values of the whitened class means [alpha]."""
    ridge: float = Field(default=100.0, gt=0)
    """Ridge penalty, a number."""
    samples: int = Field(default=100, ge=1)
    """Features drawn of each class, which the classifier is solved from."""
    normalise: bool = True
    """Scale features, prototypes and the output of each regression to length 1, as the code does, not the paper."""


class Model(SumsOnly):
    """Sums of random features and class Gaussians, and what is solved from them."""

    about = "random features, shifts and ridge in closed form (adapters if asked); 1 pass"
    Options = AnaCPOptions
    options: AnaCPOptions
    directions_HDM: Tensor
    last_DM: Tensor
    layer_HMD: Tensor
    weight_KM: Tensor

    def __init__(self, options: AnaCPOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Draw random directions from N(0, 1), which are functions of the seed."""
        super().__init__(options, backbone, generator)
        o, d = options, self.width
        directions = torch.randn(o.heads + 1, d, o.width, generator=generator)
        self.register_buffer("directions_HDM", directions[:-1].clone(), persistent=False)
        self.register_buffer("last_DM", directions[-1].clone(), persistent=False)
        self.seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        self.register_buffer("layer_HMD", torch.zeros(o.heads, o.width, d))
        self.register_buffer("weight_KM", torch.zeros(0, o.width))
        self.squares = nn.ModuleList([SymmetricSum(o.width) for _ in range(o.heads)])
        self.sum_KHM, self.gaussians = Sum(0, o.heads, o.width), ClassGaussians(d, "shared")
        self.adapt(backbone, generator, GrowingLinear(d))

    def grow_head(self, classes: int) -> None:
        """Make room for the sums of new classes."""
        self.sum_KHM.grow(classes)
        self.gaussians.grow(classes)
        self.weight_KM = torch.cat([self.weight_KM, self.weight_KM.new_zeros(classes, self.weight_KM.shape[1])])

    def unit(self, x_BD: Tensor) -> Tensor:
        """Scale rows to length 1, where that is asked for."""
        return F.normalize(x_BD, dim=-1) if self.options.normalise else x_BD

    def add(self, features_BF: Tensor, labels_B: Tensor) -> None:
        """Add images to all sums."""
        x_BD = self.unit(features_BF)
        lifted_HBM = F.gelu(x_BD @ self.directions_HDM).double()
        for square_MM, lifted_BM in zip(self.squares, lifted_HBM, strict=True):
            cast(SymmetricSum, square_MM).add_products(lifted_BM)
        self.sum_KHM.add_rows(labels_B, lifted_HBM.transpose(0, 1))
        self.gaussians.add(x_BD, labels_B)

    def solve(self) -> None:
        """Solve the layer onto the prototypes, then the classifier on what is drawn of each class."""
        o, known = self.options, self.gaussians.known
        within_DD = self.gaussians.covariance()
        within_DD.diagonal().add_(self.gaussians.jitter)
        target_KD = self.unit(prototypes(self.gaussians.mean_KD[known], within_DD, o.spread))
        for head, square_MM in enumerate(self.squares):
            product_MD = self.sum_KHM.value[known, head].T @ target_KD
            self.layer_HMD[head] = solved(cast(SymmetricSum, square_MM).value, product_MD, o.ridge)
        features_ND, labels_N = self.gaussians.draw(o.samples, self.seed)
        lifted_NM = F.gelu(self.adapted_to(features_ND) @ self.last_DM).double()
        sum_KM = torch.zeros_like(self.weight_KM, dtype=torch.float64).index_add_(0, labels_N, lifted_NM)
        self.weight_KM.copy_(solved(lifted_NM.T @ lifted_NM, sum_KM.T, o.ridge).T)

    def adapted_to(self, x_BD: Tensor) -> Tensor:
        """Features [B, D] near the prototypes of their classes, the mean over heads."""
        return self.unit(F.gelu(x_BD @ self.directions_HDM) @ self.layer_HMD).mean(0)

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Estimated one-hot labels [B, K]."""
        return F.gelu(self.adapted_to(self.unit(batch.query_BD)) @ self.last_DM) @ self.weight_KM.T
