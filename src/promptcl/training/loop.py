"""The only training loop. K classes so far, N images of the task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from promptcl.config.schema import Config
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.methods._base import Batch, Method
from promptcl.runtime import processes
from promptcl.runtime.device import send
from promptcl.store.checkpoint import Checkpoint, Place
from promptcl.training.batches import Batches
from promptcl.training.memory import Replay
from promptcl.training.optim import carry_over, make_optimizer


def fit(
    method: Method,
    batches: Batches,
    images: ImageSet,
    labels_N: Tensor,
    present_K: Tensor | None,
    config: Config,
    generator: torch.Generator,
    step: Callable[[], None],
    replay: Replay | None = None,
    previous: torch.optim.Optimizer | None = None,
    checkpoint: Checkpoint | None = None,
) -> torch.optim.Optimizer:
    """Train `method` on one task; `step` is called once per optimiser step.

    Args: labels_N class ids on the device; present_K marks the classes of the task (None: no training mask);
    generator decides order, augmentation and what is replayed; previous: the optimiser to go on with (None: fresh);
    checkpoint keeps where training stands, and where it was interrupted it goes on from there.
    Returns: the optimiser, with its moments.

    Raises:
        UserError: the loss is not finite (looked at once an epoch, so that a GPU is never made to wait); as Checkpoint.
    """
    train = config.train
    optimizer = make_optimizer(method, train)
    if previous is not None:
        carry_over(previous, optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    steps = batches.steps_per_epoch(len(images))
    epochs = batches.epochs(len(images))
    total = epochs * steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total) if train.schedule == "cosine" else None
    at = Place(method, optimizer, schedule, generator, torch.empty(0), torch.zeros((), device=labels_N.device))
    if checkpoint is not None and checkpoint.restore(at):
        for _ in range(at.done):
            step()
    processes.begin_tally(method.tallies)
    for epoch in range(at.done // steps, epochs):
        skip = at.done % steps
        if skip == 0:
            at.order_N = batches.order(images, generator)
            at.loss.zero_()
        order_N = at.order_N[skip * train.batch_size :]
        for index_B in batches.cut(order_N, len(images)):
            batch, mask, share = _batch(method, batches, images, labels_N, index_B, present_K, replay, generator)
            optimizer.zero_grad(set_to_none=True)
            loss = torch.zeros_like(at.loss)
            if share:
                loss = share * method.loss(batches.backbone, batch, mask)
                loss.backward()
            loss = processes.sum_gradients(parameters, loss)
            if train.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, train.clip_norm)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            at.loss += loss
            at.done += 1
            step()
            if checkpoint is not None and at.done % steps and checkpoint.due(at.done):
                _keep(checkpoint, at)
        at.loss += 0 * sum(p.detach().sum() for p in parameters)  # a last step that broke them is seen too
        if not torch.isfinite(at.loss):
            raise UserError(
                f"the loss became {at.loss.item()} in epoch {epoch + 1}: expected a finite number; "
                f"lower the learning rate, e.g. train.lr={train.lr / 10:g}"
            )
        if checkpoint is not None:
            _keep(checkpoint, at)
    processes.end_tally(method.tallies)
    return optimizer


def _batch(
    method: Method,
    batches: Batches,
    images: ImageSet,
    labels_N: Tensor,
    index_B: Tensor,
    present_K: Tensor | None,
    replay: Replay | None,
    generator: torch.Generator,
) -> tuple[Batch, Tensor | None, float]:
    """What this process computes of one step's batch, its mask, and the share of the batch that it is."""
    if present_K is not None and batches.config.train.mask_classes == "batch":
        present_K = torch.zeros_like(present_K).index_fill_(0, labels_N[send(index_B, labels_N.device)], True)
    new, total = len(index_B), len(index_B) + (replay.rows if replay is not None else 0)
    rows = processes.share(total, method.group)
    batch, mask = batches.view(images, labels_N, index_B, method.needs_images, generator, rows), present_K
    if replay is not None:
        old = slice(max(rows.start - new, 0), max(rows.stop - new, 0))
        batch, mask = replay.join(batch, mask, batches, method.needs_images, generator, old)
    return batch, mask, len(batch.labels_B) / total


def _keep(checkpoint: Checkpoint, at: Place) -> None:
    """Write the checkpoint, which is that of all processes together."""
    processes.end_tally(at.method.tallies)
    processes.on_first(lambda: checkpoint.write(at))
    processes.begin_tally(at.method.tallies)
