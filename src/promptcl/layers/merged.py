"""Updates that are added to the weights of linear layers once, and not in each batch. o, i outputs and inputs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Merged:
    """Weights with their updates, made again only where one of the tensors that they are made of has changed.

    Whether one has is seen without a look at its numbers: it is another tensor, it has moved, or PyTorch has counted a
    write to it. Nothing of it is saved, and it has no gradient. An exported program holds the weights as they are then.
    """

    def __init__(self) -> None:
        """Start with nothing made."""
        self._made: list[Tensor] = []
        self._of: list[tuple[weakref.ref[Tensor], int, int]] = []

    def get(self, make: Callable[[], list[Tensor]], of: Sequence[Tensor]) -> list[Tensor]:
        """What `make` gives, or gave before if none of `of`, all that it reads, has changed since."""
        if self._made and torch.compiler.is_compiling():
            return self._made
        same = len(of) == len(self._of) and all(
            one() is tensor and version == tensor._version and place == tensor.data_ptr()
            for tensor, (one, version, place) in zip(of, self._of, strict=True)
        )
        if not same:
            self._made = []  # freed before others are made
            # Not inference tensors, which a loss could not go through later.
            with torch.inference_mode(False), torch.no_grad():
                self._made = make()
            self._of = [(weakref.ref(tensor), tensor._version, tensor.data_ptr()) for tensor in of]
        return self._made
