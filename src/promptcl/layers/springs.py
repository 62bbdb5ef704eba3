"""Quadratic springs that pull parameters back to where they were, as stiff as is known of each (EWC)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptcl.layers.sums import Sum


class PerNumber(nn.ModuleList):
    """A sum for each number of some parameters, in a fixed order, for instance of squared gradients; float32."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Start with zeros of the shapes of `parameters`."""
        super().__init__(Sum(*p.shape, dtype=torch.float32) for p in parameters)

    @property
    def values(self) -> list[Tensor]:
        """A tensor of the shape of each parameter."""
        return [part.value for part in self if isinstance(part, Sum)]

    def grow(self, parameters: Sequence[Tensor]) -> None:
        """Follow parameters that have more rows now, with zeros."""
        for part, p in zip(self, parameters, strict=True):
            if isinstance(part, Sum) and p.ndim and len(p) > len(part.value):
                part.grow(len(p) - len(part.value))

    def average(self, parts: Sequence[Tensor], weight: float) -> None:
        """Become the mean of what is here and `parts`, which counts `weight`."""
        for value, part in zip(self.values, parts, strict=True):
            value.lerp_(part.to(value), weight)

    def add(self, parts: Sequence[Tensor], weight: float) -> None:
        """Add `weight` times `parts`."""
        for value, part in zip(self.values, parts, strict=True):
            value.add_(part, alpha=weight)


class Springs(nn.Module):
    """For each of some parameters, in a fixed order: how stiff the spring of each number is, and where it rests."""

    def __init__(self, parameters: Sequence[Tensor], keep_rest: bool) -> None:
        """Start without stiffness. keep_rest: whether the places of rest are part of what is saved."""
        super().__init__()
        self.stiffness = PerNumber(parameters)
        for i, p in enumerate(parameters):
            self.register_buffer(f"rest_{i}", p.detach().clone(), persistent=keep_rest)

    @property
    def rest(self) -> list[Tensor]:
        """Where each parameter rests."""
        return [self.get_buffer(f"rest_{i}") for i in range(len(self.stiffness))]

    def grow(self, parameters: Sequence[Tensor]) -> None:
        """Follow parameters that have more rows now; those are not held."""
        self.stiffness.grow(parameters)
        for i, (rest, p) in enumerate(zip(self.rest, parameters, strict=True)):
            if p.ndim and len(p) > len(rest):
                setattr(self, f"rest_{i}", torch.cat([rest, p.detach()[len(rest) :]]))

    def hold(self, parameters: Sequence[Tensor], stiffness: Sequence[Tensor] | None = None) -> None:
        """Let all rest where they are now, with this stiffness (None: as before)."""
        for rest, p in zip(self.rest, parameters, strict=True):
            rest.copy_(p)
        for value, new in zip(self.stiffness.values, stiffness or [], strict=stiffness is not None):
            value.copy_(new)

    def join(self, before: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        """Let springs that came since the stiffness was `before`, and rest where `parameters` are, become one with it.

        Several springs on one number pull as one does that is as stiff as all and rests at their weighted mean.
        """
        for rest, old, value, p in zip(self.rest, before, self.stiffness.values, parameters, strict=True):
            rest += (value - old) / value.clamp_min(torch.finfo(value.dtype).tiny) * (p - rest)

    def energy(self, parameters: Sequence[Tensor]) -> Tensor:
        """Half the sum of stiffness times the square of the distance from rest, in float32."""
        springs = zip(self.stiffness.values, self.rest, parameters, strict=True)
        return 0.5 * torch.stack([(stiff * (p.float() - rest).square()).sum() for stiff, rest, p in springs]).sum()


def gradient_squares(
    parameters: Sequence[Tensor],
    logits: Callable[[Tensor], Tensor],
    images_NX: Tensor,
    labels_N: Tensor,
    allowed_NK: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Sum over N images of the squared gradient of log p(label), image by image: N times the diagonal Fisher matrix.

    logits: those [1, K] of one image [1, ...]; labels_N: class ids; allowed_NK: which classes compete, None for all;
    generator: draws labels from p in the place of those given.
    """
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    for i in range(len(images_NX)):
        with torch.enable_grad():
            logits_1K = logits(images_NX[i : i + 1]).float()
            if allowed_NK is not None:
                logits_1K = logits_1K.masked_fill(~allowed_NK[i], float("-inf"))
            label_1 = labels_N[i : i + 1]
            if generator is not None:  # argmax of the logits plus Gumbel noise is a draw from their softmax
                noise_1K = torch.rand(logits_1K.shape, generator=generator).clamp_min(1e-20).log().neg().log().neg()
                label_1 = (logits_1K.detach() + noise_1K.to(logits_1K)).argmax(1)
            loss = F.cross_entropy(logits_1K, label_1)
            gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        for part, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                part.add_(gradient.float().square())
    return total
