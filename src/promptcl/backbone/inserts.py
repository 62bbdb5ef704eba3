"""What a method may put into a block of the ViT. B images, L tokens, D width."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Tokens [B, L, D] put in front of all other tokens right before block `layer` (from 0)."""

    layer: int
    tokens_BLD: Tensor
