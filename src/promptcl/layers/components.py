"""Prompts as weighted sums of components, of which every task adds some (CODA-Prompt, OS-Prompt).

B images, R prefixed layers, M components of all tasks, n of the present one, L rows of a prefix, D width, X any length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from promptcl.backbone import Prefix
from promptcl.layers.prompts import cosine


def orthonormal(count: int, old_MX: Tensor, generator: torch.Generator) -> Tensor:
    """Random rows [count, X] of length 1, orthogonal to each other and to all of `old_MX`; M + count may not exceed X.

    Exact whatever the old rows are. Public code subtracts them one by one, which leaves cosines of .04 to .1 where
    training has made them oblique.
    """
    drawn = torch.randn(count, old_MX.shape[1], generator=generator)
    if not old_MX.shape[1]:
        return drawn
    rows = torch.cat([old_MX.cpu(), drawn]).double()
    directions: Tensor = torch.linalg.qr(rows.T).Q.T
    return directions[len(old_MX) :].to(old_MX)


class Components(nn.Module):
    """In each layer M prefixes with keys, whose sum, weighted by the match of key and query, is the prefix of an image.

    Those of the present task are parameters, those of earlier ones buffers: they take part and are never trained.
    """

    def __init__(self, layers: Sequence[int], length: int, width: int, attention: bool) -> None:
        """Start without components. attention: each has a vector too that says which coordinates of a query count."""
        super().__init__()
        self.layers, self.length, self.width = tuple(layers), length, width
        sizes = {"prompt": 2 * length * width, "key": width} | ({"attention": width} if attention else {})
        self.present = nn.ParameterDict({name: torch.zeros(len(layers), 0, size) for name, size in sizes.items()})
        for name, size in sizes.items():
            self.register_buffer(f"past_{name}", torch.zeros(len(layers), 0, size))

    def all(self, name: str) -> Tensor:
        """The `prompt`, `key` or `attention` [R, M, X] of all tasks."""
        return torch.cat([self.get_buffer(f"past_{name}"), self.present[name]], 1)

    def grow(self, count: int, generator: torch.Generator) -> None:
        """Freeze those of the last task, and add `count` orthonormal ones, or as many as there are directions left."""
        for name in self.present:
            past = self.all(name).detach()
            self.register_buffer(f"past_{name}", past)
            left = max(0, min(count, self.width - past.shape[1]))
            new = torch.stack([orthonormal(left, rows_MX, generator) for rows_MX in past])
            self.present[name] = nn.Parameter(new.to(past))

    def weights(self, number: int, query_BD: Tensor) -> Tensor:
        """Weight [B, M] of each component in layer `number` of those prefixed: cosine of key and (attended) query.

        cos(q * A, K) without a tensor [B, M, D]: q (A * K)^T over the lengths of q * A and K.
        """
        keys_MD = self.all("key")[number]
        if "attention" not in self.present:
            return cosine(query_BD, keys_MD)
        attention_MD = self.all("attention")[number]
        length_BM = query_BD.square() @ attention_MD.square().T
        scale_BM = length_BM.clamp_min(1e-12).rsqrt() * keys_MD.square().sum(1).clamp_min(1e-12).rsqrt()
        return query_BD @ (attention_MD * keys_MD).T * scale_BM

    def prefix(self, number: int, query_BD: Tensor) -> Prefix:
        """The prefix of each image in layer `number` of those prefixed: first half keys, second half values."""
        rows_BX = self.weights(number, query_BD) @ self.all("prompt")[number]
        rows_B2LD = rows_BX.view(query_BD.shape[0], 2, self.length, self.width)
        return Prefix(self.layers[number], rows_B2LD[:, 0], rows_B2LD[:, 1])

    def obliqueness(self) -> Tensor:
        """How far components are from orthonormal: the mean of (T T^T - 1)^2, summed over layers and kinds T."""
        gaps = [rows @ rows.mT - torch.eye(rows.shape[1], device=rows.device) for rows in map(self.all, self.present)]
        return torch.stack([gap.square().mean((1, 2)).sum() for gap in gaps]).sum()
