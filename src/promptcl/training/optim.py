"""The optimiser of a method, its learning rate, and moments that go on in the next task."""

from __future__ import annotations

import torch
from torch import Tensor

from promptcl.config.schema import TrainConfig
from promptcl.methods._base import Method


def effective_lr(train: TrainConfig) -> float:
    """Learning rate after linear scaling by batch size: lr * batch_size / lr_batch (L2P release: lr * B / 256)."""
    return train.lr if train.lr_batch is None else train.lr * train.batch_size / train.lr_batch


def make_optimizer(method: Method, train: TrainConfig) -> torch.optim.Optimizer:
    """A fresh optimiser over what the method trains; SGD has Nesterov momentum 0.9 as in the L2P release."""
    lr = effective_lr(train)
    groups = method.parameter_groups(lr)
    if train.optimizer == "adam":
        return torch.optim.Adam(groups, lr=lr, weight_decay=train.weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=train.weight_decay)


def carry_over(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
    """Moments and step counts of `old` go on in `new`; rows that parameters have got since start at zero."""
    for before, after in zip(old.param_groups, new.param_groups, strict=True):
        for p, q in zip(before["params"], after["params"], strict=True):
            for name, value in old.state.get(p, {}).items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    new.state[q][name] = torch.zeros_like(q)
                    new.state[q][name][: len(p)] = value
                else:
                    new.state[q][name] = value
