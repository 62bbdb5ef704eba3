"""The only training loop: it runs one stage of a task. B rows of a batch, K classes so far, N images of the stage."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from promptcl.config import Config
from promptcl.data import ImageSet
from promptcl.data.ahead import batches_ahead
from promptcl.errors import UserError
from promptcl.methods._base import Method, Stage
from promptcl.runtime import processes
from promptcl.runtime.device import send
from promptcl.runtime.seeding import task_generator
from promptcl.store.checkpoint import Checkpoint
from promptcl.training.batches import Batches, TrainBatch
from promptcl.training.exchange import Exchange
from promptcl.training.memory import Replay
from promptcl.training.optim import Moments, effective_lr, load_moments, make_optimizer, make_schedule, moments_of
from promptcl.training.state import state_of


class Progress(Protocol):
    """Receives how far the training has come, for instance to display it."""

    def stage(self, number: int, steps: int) -> None:
        """Stage `number` (from 0) of the task begins and will take `steps` optimiser steps."""

    def step(self) -> None:
        """One optimiser step is done."""


class Silent:
    """A Progress that shows nothing."""

    def stage(self, number: int, steps: int) -> None:
        """Show nothing."""

    def step(self) -> None:
        """Show nothing."""


@dataclass
class Run:
    """The state of a stage while it is trained."""

    stage: Stage
    number: int
    total: int
    per_epoch: int
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    labels_N: Tensor
    """Class ids of the images of the stage."""
    allowed_K: Tensor | None
    """True for the classes of the task [K]; None: no mask, as where the stage has images of others."""
    replay: Replay | None
    done: int = 0
    """Optimiser steps taken so far."""


@dataclass
class Trainer:
    """Trains the stages of one task."""

    method: Method
    batches: Batches
    config: Config
    task: int
    """Number of the task, which all randomness depends on."""
    labels_of: Callable[[ImageSet], Tensor]
    """Class ids [N] of images, on the device."""
    allowed_K: Tensor | None
    """True for the classes of the task [K]; None where nothing is masked."""
    replay_of: Callable[[ImageSet, int], Replay]
    """Makes the Replay of images that join each batch, in so many draws."""
    checkpoint: Checkpoint | None = None
    progress: Progress = field(default_factory=Silent)
    carried: dict[int, Moments] | None = None
    """Moments of the stages of the task before, which go on; None: every stage has a fresh optimiser."""
    seen: int = 0
    """Images trained on so far, epochs and replayed ones counted."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """What the method counted in the stages so far."""

    def run(self, stage: Stage, number: int) -> None:
        """Train `stage`, number `number` of its task (from 0), or continue it where it was interrupted.

        Raises:
            UserError: the loss is not finite (checked once an epoch, so that a GPU need not wait for it);
                a checkpoint cannot be written or read.
        """
        if not self._length(stage)[0]:
            return
        run = self.prepare(stage, number)
        self.progress.stage(number, run.total)
        self.method.stats.restore(self.statistics)
        finished = self._resume(run)
        for _ in range(run.done):
            self.progress.step()
        if not finished:
            self.method.train()
            with torch.enable_grad():
                self._train(run)
            self.method.eval()
            self._keep(run, finished=True)
        self.statistics = self.method.stats.tensors()
        self.method.stats.clear()
        if self.carried is not None and not stage.fresh:
            self.carried[number] = moments_of(run.optimizer)
        if stage.images is not None:
            rows = min(run.per_epoch * self.config.train.batch_size, len(stage.images)) / run.per_epoch
            self.seen += round(run.total * rows) + (run.total * len(run.replay) if run.replay is not None else 0)

    def _length(self, stage: Stage) -> tuple[int, int]:
        """Optimiser steps of the stage, and of one of its epochs."""
        if stage.images is None:
            if stage.steps is None:
                raise ValueError("a stage without images needs `steps`")
            return stage.steps, max(1, stage.steps)
        if not len(stage.images):
            return 0, 1
        per_epoch = self.batches.steps_per_epoch(len(stage.images))
        epochs = self.batches.epochs(len(stage.images)) if stage.epochs is None else stage.epochs
        return epochs * per_epoch if stage.steps is None else stage.steps, per_epoch

    def prepare(self, stage: Stage, number: int) -> Run:
        """Make optimiser, schedule, labels and mask for the first step of `stage`."""
        train, (total, per_epoch) = self.config.train, self._length(stage)
        lr = effective_lr(train) if stage.lr is None else stage.lr
        groups = self.method.parameter_groups(lr) if stage.groups is None else stage.groups
        optimizer = make_optimizer(groups, lr, train)
        if self.carried is not None and number in self.carried and not stage.fresh:
            load_moments(optimizer, self.carried[number])
        schedule = make_schedule(optimizer, train, total, per_epoch, stage.rate)
        labels_N, allowed_K = torch.zeros(0, dtype=torch.long, device=self.batches.device), None
        if stage.images is not None:
            labels_N = self.labels_of(stage.images)
            allowed_K = allowed(self.allowed_K, labels_N)
        replay = None if stage.replay is None or not len(stage.replay) else self.replay_of(stage.replay, stage.draws)
        return Run(stage, number, total, per_epoch, optimizer, schedule, labels_N, allowed_K, replay)

    def _train(self, run: Run) -> None:
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        total_loss = torch.zeros((), device=self.batches.device)
        # A stage that draws everything itself is computed alike in every process, sums included.
        exchange = Exchange(
            self.method, self.batches.device, active=run.stage.images is not None or run.replay is not None
        )
        exchange.begin()
        for step, batch, share in self._batches(run):
            epoch, place = divmod(step, run.per_epoch)
            run.optimizer.zero_grad(set_to_none=True)
            loss = torch.zeros_like(total_loss)
            if share:
                loss = share * (run.stage.loss or self.method.loss)(self.batches.backbone, batch)
                loss.backward()
            total_loss += processes.sum_gradients(parameters, loss)
            if self.config.train.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.config.train.clip_norm)
            run.optimizer.step()
            if run.schedule is not None:
                run.schedule.step()
            if run.stage.after_step is not None:
                with torch.no_grad():
                    run.stage.after_step()
            run.done = step + 1
            self.progress.step()
            epoch_ends = place + 1 == run.per_epoch or run.done == run.total
            if epoch_ends:
                self._check_finite(total_loss, parameters, epoch)
                total_loss = torch.zeros_like(total_loss)
            if self.checkpoint is not None and run.done < run.total and self.checkpoint.due(run.done, epoch_ends):
                exchange.end()
                self._keep(run, finished=False)
                exchange.begin()
        exchange.end()
        self.batches.ahead.forget()

    def _batches(self, run: Run) -> Iterator[tuple[int, TrainBatch, float]]:
        """The steps that are left, each with its batch, which knows the ones that follow."""
        order_N, waiting = torch.empty(0), deque[tuple[int, TrainBatch, float]]()
        for step in range(run.done, run.total):
            epoch, place = divmod(step, run.per_epoch)
            if run.stage.images is not None and (place == 0 or step == run.done):
                order_N = self.batches.order(run.stage.images, self._generator(run, f"epoch {epoch}, order"))
            batch, share = self.batch(run, step, order_N)
            if waiting:
                waiting[-1][1].following = batch
            waiting.append((step, batch, share))
            if len(waiting) > batches_ahead(self.config.train.batch_size):
                yield waiting.popleft()
        yield from waiting

    def _generator(self, run: Run, purpose: str) -> torch.Generator:
        return task_generator(self.config.seed, self.task, f"stage {run.number}, {purpose}")

    def batch(self, run: Run, step: int, order_N: Tensor) -> tuple[TrainBatch, float]:
        """This process's rows of the batch of `step`, and their share of the whole batch (0 to 1)."""
        size, device = self.config.train.batch_size, self.batches.device
        place = step % run.per_epoch
        index_B = order_N[place * size : (place + 1) * size] if run.stage.images is not None else torch.empty(0)
        new, old_R = len(index_B), torch.empty(0, dtype=torch.long)
        if run.replay is not None:
            old_R = run.replay.draw(self._generator(run, f"step {step}, replay"))
        total = new + len(old_R)
        rows = processes.share(total, math.lcm(max(1, run.stage.together), self.method.together))
        if run.stage.together == 0:  # process 0 computes the whole batch
            rows = slice(0, 0 if processes.rank() else total)
        labels_B = run.labels_N[send(index_B.long(), device)]
        allowed_K = run.allowed_K
        if allowed_K is not None and self.config.train.mask_classes == "batch":
            allowed_K = torch.zeros_like(allowed_K).index_fill_(0, labels_B, True)
        if run.replay is not None:
            labels_B = torch.cat([labels_B, run.replay.labels_N[send(old_R, device)]])
        allowed_BK = None
        if allowed_K is not None:
            # Replayed rows have no mask: only they compare classes of different tasks.
            allowed_BK = allowed_K.expand(new, -1)
            if len(old_R):
                allowed_BK = torch.cat([allowed_BK, torch.ones_like(allowed_K).expand(len(old_R), -1)])
            allowed_BK = allowed_BK[rows]
        made = TrainBatch(
            *(self.batches, run.stage.images, index_B.long().tolist(), labels_B[rows], allowed_BK, rows),
            *(lambda purpose: self._generator(run, f"step {step}, {purpose}"), run.replay, old_R.tolist()),
            epoch=step // run.per_epoch,
        )
        if run.stage.images is None and run.replay is None:
            return made, 1 / processes.size()
        return made, len(labels_B[rows]) / total

    def _check_finite(self, loss: Tensor, parameters: list[nn.Parameter], epoch: int) -> None:
        loss = loss + 0 * sum(p.detach().sum() for p in parameters)  # or a parameter, after the last step
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} in epoch {epoch + 1}: expected a finite number; "
                f"lower the learning rate, e.g. train.lr={self.config.train.lr / 10:g}"
            )

    def _keep(self, run: Run, finished: bool) -> None:
        """Write the checkpoint, one for all processes."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            return
        tensors = {f"method.{name}": value for name, value in state_of(self.method).items()}
        tensors |= {f"stats.{name}": value for name, value in self.method.stats.tensors().items()}
        numbers: dict[str, Any] = {"done": run.done}
        if not finished or self.carried is not None:
            tensors |= {f"optimizer.{name}": value for name, value in moments_of(run.optimizer).items()}
            numbers["groups"] = run.optimizer.state_dict()["param_groups"]
        if not finished and run.schedule is not None:
            numbers["schedule"] = run.schedule.state_dict()
        processes.on_first(lambda: checkpoint.write(run.number, tensors, numbers, finished))

    def _resume(self, run: Run) -> bool:
        """Load method and `run` from the checkpoint of this stage, if it has one; returns whether it had ended."""
        found = None if self.checkpoint is None else self.checkpoint.read(run.number)
        if self.checkpoint is None or found is None:
            return False
        tensors, numbers = found
        try:
            with torch.no_grad():
                for name, value in state_of(self.method).items():
                    if tensors[f"method.{name}"].shape != value.shape:  # which copy_ might broadcast
                        raise ValueError(f"the shape of {name}")
                    value.copy_(tensors[f"method.{name}"])
            stats = _named(tensors, "stats.").items()
            self.method.stats.restore({name: value.to(self.batches.device) for name, value in stats})
            if "groups" in numbers:
                run.optimizer.load_state_dict({"state": {}, "param_groups": numbers["groups"]})
                load_moments(run.optimizer, _named(tensors, "optimizer."))
            if run.schedule is not None and "schedule" in numbers:
                run.schedule.load_state_dict(numbers["schedule"])
            run.done, finished = int(numbers["done"]), bool(numbers["finished"])
            if not 0 < run.done <= run.total or finished != (run.done == run.total):
                raise ValueError(f"{run.done} of {run.total} steps")
            return finished
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise self.checkpoint.unfit(error) from error


def allowed(task_K: Tensor | None, labels_N: Tensor) -> Tensor | None:
    """The training mask [K] of images with these labels: the classes of the task; None where others are among them."""
    return task_K if task_K is not None and bool(task_K[labels_N].all()) else None


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of `tensors` whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
