"""Where the training of one task stands, kept on disk: a killed process goes on bit for bit as if it had not been."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptcl.errors import UserError
from promptcl.methods._base import Method
from promptcl.store import files

FORMAT = 1
KIND = files.Kind(
    "checkpoint of promptcl", FORMAT, "delete this folder to learn what was interrupted from its start again"
)


def named_moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, as `optimizer.<number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def moments(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The `state` of an optimiser's state dict from `named_moments`; other names are left out."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            number, _, name = rest.partition(".")
            found.setdefault(int(number), {})[name] = tensor
    return found


@dataclass
class Place:
    """All that decides how training goes on."""

    method: Method
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    generator: torch.Generator
    """Draws order and augmentation."""
    order_N: Tensor
    """Images in the order of this epoch."""
    loss: Tensor
    """Sum over the steps of this epoch."""
    done: int = 0
    """Optimiser steps."""

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers (what a state dict leaves out too: counts), moments, order and generator."""
        found = {f"method.{name}": value for name, value in self._method().items()}
        found |= named_moments(self.optimizer)
        return {**found, "order": self.order_N, "loss": self.loss, "generator": self.generator.get_state()}

    def numbers(self) -> dict[str, Any]:
        """The rest, as JSON values."""
        schedule = self.schedule.state_dict() if self.schedule is not None else None
        return {"done": self.done, "groups": self.optimizer.state_dict()["param_groups"], "schedule": schedule}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Stand where `tensors` and `numbers` were taken."""
        with torch.no_grad():
            for name, value in self._method().items():
                value.copy_(tensors[f"method.{name}"])
            self.loss.copy_(tensors["loss"])
        self.optimizer.load_state_dict({"state": moments(tensors), "param_groups": numbers["groups"]})
        if self.schedule is not None:
            self.schedule.load_state_dict(numbers["schedule"])
        self.generator.set_state(tensors["generator"])
        self.order_N, self.done = tensors["order"], int(numbers["done"])

    def _method(self) -> dict[str, Tensor]:
        return {**dict(self.method.named_parameters()), **dict(self.method.named_buffers())}


class Checkpoint:
    """The folder `checkpoint` inside a store: the last place of the training that goes on there."""

    def __init__(self, store: Path, identity: Mapping[str, Any], every: int) -> None:
        """Write every `every` steps.

        identity: JSON values that say what is learned; the one under `base` is the checksum of the store. A checkpoint
        with another base is of no use any more, one with the same base belongs to an interrupted learn.
        Raises UserError: the folder is a link, which in a stranger's store may lead anywhere.
        """
        if (store / "checkpoint").is_symlink():
            raise UserError(f"{store / 'checkpoint'} is a link, expected a folder of the store; remove it")
        self.store, self.path = store, store / "checkpoint" / "checkpoint.json"
        self.identity, self.every = dict(identity), every
        self.seconds_before = 0.0
        self._began = time.perf_counter()

    def due(self, done: int) -> bool:
        """Whether to write after step `done`."""
        return done % self.every == 0

    def write(self, place: Place) -> None:
        """Keep `place` in the place of the last one. Raises UserError where it cannot be written."""
        seconds = self.seconds_before + time.perf_counter() - self._began
        document = {"format": FORMAT, "identity": self.identity, "seconds": seconds, **place.numbers()}
        files.write_pair(self.path, document, place.tensors())

    def restore(self, place: Place) -> bool:
        """Bring `place` to where training was interrupted; False where it was not.

        Raises UserError: something else was interrupted here, or the checkpoint is damaged.
        """
        try:
            kept = files.read_json(self.path, KIND)[0].get("identity")
        except files.Absent:
            return False
        if not isinstance(kept, dict) or kept.get("base") != self.identity["base"]:
            return False
        if kept != self.identity:
            differing = [key for key in self.identity if kept.get(key) != self.identity[key]]
            raise UserError(
                f"learning was interrupted in {self.store} with other {' and '.join(differing)}: repeat what was "
                f"interrupted, or delete the folder {self.path.parent} to give it up"
            )
        pair = files.read_pair(self.path, KIND)
        try:
            place.restore(pair.tensors, pair.document)
            self.seconds_before = float(pair.document["seconds"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise UserError(f"{self.path.parent} does not fit what is learned ({error!r}): {KIND.remedy}") from error
        return True


def discard(store: Path) -> None:
    """Remove the checkpoint of `store`, if there is one; other files in a folder of that name stay."""
    if not (store / "checkpoint").is_symlink():
        files.remove_pair(store / "checkpoint" / "checkpoint.json")
