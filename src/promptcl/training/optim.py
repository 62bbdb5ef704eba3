"""The optimiser of a stage, its schedule, and moments that go on in the next task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from promptcl.config import TrainConfig
from promptcl.errors import UserError


def effective_lr(train: TrainConfig) -> float:
    """Learning rate after linear scaling by batch size: lr * batch_size / lr_batch (L2P release: lr * B / 256)."""
    return train.lr if train.lr_batch is None else train.lr * train.batch_size / train.lr_batch


def make_optimizer(groups: Sequence[dict[str, Any]], lr: float, train: TrainConfig) -> torch.optim.Optimizer:
    """A fresh optimiser over `groups`, at `lr` where they name none; SGD with Nesterov momentum 0.9."""
    groups = [dict(group) for group in groups]
    if train.optimizer == "adam":
        return torch.optim.Adam(groups, lr=lr, weight_decay=train.weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=train.weight_decay)


def make_schedule(optimizer: torch.optim.Optimizer, kind: str, total: int, per_epoch: int) -> LRScheduler | None:
    """How the learning rate falls over `total` steps; None where it stays.

    `quarter_cosine` (CODA-Prompt, OVOR): epoch e of E has lr * cos(99 pi e / (200 (E - 1))), lr where E is 1.
    """
    if kind == "cosine":
        return CosineAnnealingLR(optimizer, total)
    if kind == "quarter_cosine":
        last = max(1, -(-total // per_epoch) - 1)
        return LambdaLR(optimizer, lambda step: math.cos(99 * math.pi * min(step // per_epoch, last) / (200 * last)))
    return None


def carry_over(moments: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Moments and step counts, named as by `named_moments`, go on in `optimizer`, one that has taken no step yet.

    Rows that parameters have got since start at zero; so does all of it where another kind of optimiser left it.
    Raises UserError where they are of other parameters.
    """
    kept = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in _by_number(moments).items():
        if values.keys() != kept:
            continue
        try:
            p = parameters[number]
            for name, value in values.items():
                whole = value.clone() if name == "step" else torch.zeros_like(p)
                if name != "step":
                    whole[tuple(slice(n) for n in value.shape)] = value
                optimizer.state[p][name] = whole
        except (IndexError, RuntimeError) as error:
            raise UserError(
                "the moments of its optimiser are not those of its parameters; take a copy of it that is whole"
            ) from error


def _by_number(moments: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Of each parameter, by its number, what `named_moments` gave."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        number, _, name = key.partition(".")
        found.setdefault(int(number), {})[name] = tensor
    return found


def named_moments(optimizer: torch.optim.Optimizer, prefix: str = "optimizer.") -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, as `<prefix><number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def load_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str = "optimizer.") -> None:
    """Put what `named_moments` gave back into `optimizer`; other names are left out."""
    found = _by_number({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
