"""Sums and statistics of a method over several processes: each adds its own images, then all get the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from promptcl.layers import sums_of
from promptcl.methods._base import Method
from promptcl.runtime import processes


class Exchange:
    """A distributed sum: from `begin` to `end` each process adds what its own images give. Alone it does nothing."""

    def __init__(self, method: Method, device: torch.device, sums: bool = True, active: bool = True) -> None:
        """Exchange what `method` counts, and its `sums` unless nothing adds to them; not at all unless `active`."""
        self.method, self.device, self.sums = method, device, sums
        self.active = active and processes.size() > 1
        self._before: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Remember the values of now."""
        if self.active:
            self._before = {name: value.clone() for name, value in self._values().items()}

    def end(self) -> None:
        """Give every process the values that `begin` found plus what all processes have added since."""
        if not self.active:
            return
        stats = self.method.stats
        shapes: dict[str, list[int]] = {}
        for theirs in processes.everyones({name: list(value.shape) for name, value in stats.tensors().items()}):
            shapes |= {name: max(shape, shapes.get(name, [])) for name, shape in theirs.items()}
        stats.fill(shapes, self.device)  # some processes may have counted nothing
        now = self._values()
        old = {name: torch.zeros_like(value) for name, value in now.items()}
        for name, value in self._before.items():  # what counts may have grown since, in its first dimension
            old[name][tuple(slice(n) for n in value.shape)] = value
        added = processes.add_up([value - old[name] for name, value in now.items()])
        for (name, value), more in zip(now.items(), added, strict=True):
            value.copy_(old[name] + more)

    def _values(self) -> dict[str, Tensor]:
        own = {f"sum.{number}": value for number, value in enumerate(sums_of(self.method))} if self.sums else {}
        return {**own, **{f"stats.{name}": value for name, value in self.method.stats.tensors().items()}}


@contextlib.contextmanager
def joined(method: Method, device: torch.device, sums: bool = True) -> Iterator[None]:
    """Exchange what the processes add inside, even if a loop inside is left early: the others wait for it."""
    exchange = Exchange(method, device, sums)
    exchange.begin()
    try:
        yield
    except GeneratorExit:
        exchange.end()
        raise
    exchange.end()
