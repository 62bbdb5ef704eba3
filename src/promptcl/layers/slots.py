"""A tensor for each task: that of the newest is trained, those of earlier ones are frozen. S slots."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Slots(nn.Module):
    """Slots of one shape, drawn from U(-1, 1)."""

    past: Tensor

    def __init__(self, *shape: int) -> None:
        """Start without slots."""
        super().__init__()
        self.newest = nn.Parameter(torch.zeros(0, *shape))
        self.register_buffer("past", torch.zeros(0, *shape))

    def grow(self, generator: torch.Generator) -> None:
        """Add the newest slot to the past ones and draw another."""
        self.past = torch.cat([self.past, self.newest.detach()])
        drawn = torch.empty(1, *self.newest.shape[1:]).uniform_(-1, 1, generator=generator)
        self.newest = nn.Parameter(drawn.to(self.past.device))

    @property
    def all(self) -> Tensor:
        """All slots [S, ...], the newest last."""
        return torch.cat([self.past, self.newest])

    def mixed(self, share: float) -> Tensor:
        """The newest slot [1, ...] with a share of the mean of the earlier ones."""
        return torch.lerp(self.newest, self.past.mean(0, keepdim=True), share) if len(self.past) else self.newest
