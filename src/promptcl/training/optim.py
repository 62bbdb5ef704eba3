"""The optimiser of a stage, its learning-rate schedule, and moments that carry over to the next task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    """Make the optimiser that `train` names of `groups`, at `lr` where they name no learning rate."""
    groups = [dict(group) for group in groups]
    if train.optimizer == "sgd":
        decay = train.weight_decay
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=train.nesterov, weight_decay=decay)
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr, weight_decay=train.weight_decay)


def make_schedule(
    optimizer: torch.optim.Optimizer,
    train: TrainConfig,
    total: int,
    per_epoch: int,
    rate: Callable[[float], float] | None = None,
) -> LRScheduler | None:
    """Make the schedule by which the learning rate falls over `total` steps; None where it stays.

    `rate` gives what it is times, by the share of the steps that are done; None: as `train` says.
    `quarter_cosine` (CODA-Prompt, OVOR): epoch e of E has lr * cos(99 pi e / (200 (E - 1))), lr where E is 1.
    `restarts`: see `restarted`; lr where there is one epoch.
    """
    if rate is not None:
        return LambdaLR(optimizer, lambda step: rate(step / total))
    if train.schedule == "cosine":
        return CosineAnnealingLR(optimizer, total)
    if train.schedule == "quarter_cosine":
        last = max(1, -(-total // per_epoch) - 1)
        return LambdaLR(optimizer, lambda step: math.cos(99 * math.pi * min(step // per_epoch, last) / (200 * last)))
    if train.schedule == "restarts":
        return LambdaLR(optimizer, lambda step: restarted(step // per_epoch) if total > per_epoch else 1.0)
    if train.schedule == "step":
        steps = [epoch * per_epoch for epoch in train.milestones]
        return LambdaLR(optimizer, lambda step: 0.1 ** sum(step >= fall for fall in steps))
    return None


def restarted(epoch: int) -> float:
    """Share of the learning rate in an epoch, from 0: warm restarts after 1, 2, 4, ... epochs (SGDR), as GDumb has it.

    A tenth in epoch 0; then each period falls by a half cosine from 1 towards 1 / 100.
    """
    if epoch == 0:
        return 0.1
    period = 1 << (epoch.bit_length() - 1)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (epoch - period) / period)) / 2


Moments = dict[str, Tensor]
"""What an optimiser remembers of each parameter, by `<number of the parameter>.<name>`."""


def moments_of(optimizer: torch.optim.Optimizer) -> Moments:
    """All that `optimizer` remembers of its parameters, numbered in their order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def load_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Let `optimizer` go on from `moments`; rows that parameters have gained since start at zero.

    Moments of another kind of optimiser are left out: it begins with none.
    Raises UserError where they are not moments of these parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = (
        {"step", "exp_avg", "exp_avg_sq"}
        if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
        else {"momentum_buffer"}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        number, _, name = key.partition(".")
        if name not in known:
            continue
        parameter = parameters[int(number)] if int(number) < len(parameters) else None
        if parameter is None or (value.ndim and not _fits(value, parameter)):
            raise UserError(
                "the moments of its optimiser are not those of its parameters; take a copy of it that is whole"
            )
        if value.ndim and value.shape != parameter.shape:
            grown = torch.zeros_like(parameter)
            grown[: len(value)] = value
            value = grown
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _fits(value: Tensor, parameter: Tensor) -> bool:
    return value.shape[1:] == parameter.shape[1:] and len(value) <= len(parameter)
