"""Several processes that train as one (torchrun): which rows each computes, and what they exchange.

Every process draws the same image order and augmentation for the whole batch and computes its own rows of it. In an
exchange every process waits for the others, so all must call these functions in the same order. A process alone
exchanges nothing. No torch is imported before a group is formed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from promptcl.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

TIMEOUT = timedelta(minutes=5)  # no working process makes another wait so long, so one that does has hung

_rank, _size, _turns = 0, 1, 0
_store: Store | None = None


def rank() -> int:
    """Number of this process, from 0; the process with 0 writes and prints."""
    return _rank


def size() -> int:
    """Number of processes that train together; 1 for a process alone."""
    return _size


def wanted() -> int:
    """Number of processes that torchrun started, by its environment variables; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "").isdigit() else 1


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Context in which this process trains together with the others that torchrun started.

    It does nothing without torchrun and inside a group. An error in one process ends all of them, with exit code 2 for
    bad input and for a lost process; only the first process that fails prints its message.
    """
    if wanted() == 1 or _size > 1:
        yield
        return
    _form()
    try:
        yield
        _part()
    except (UserError, OSError):
        assert _store is not None
        with contextlib.suppress(RuntimeError):  # the process that hosts torch's store may have ended
            if _store.add("failures", 1) > 1:
                sys.exit(2)
        raise
    except KeyboardInterrupt:
        if _rank:
            sys.exit(130)
        raise


def _form() -> None:
    global _rank, _size, _store
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _together():
        store, number, count = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        own = PrefixStore("group", store)
        dist.init_process_group(backend, store=own, rank=number, world_size=count, timeout=TIMEOUT)
    _rank, _size, _store = number, count, store


def _part() -> None:
    global _rank, _size, _store
    import torch.distributed as dist

    dist.destroy_process_group()
    _rank, _size, _store = 0, 1, None


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Turn a failed exchange between processes into a UserError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise UserError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has lost the others ({reason}): one of them "
            "ended or hangs; go on with the same torchrun command and promptcl train --resume DIR"
        ) from error


def device_name(name: str) -> str:
    """Turn `auto` and `cuda` into a GPU of its own for each process that trains with others; other names stay.

    Raises UserError: more processes than GPUs, or a numbered GPU, which all would share.
    """
    import torch

    if _size == 1 or not (name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())):
        return name
    local, count = int(os.environ.get("LOCAL_RANK", _rank)), torch.cuda.device_count()
    if name.startswith("cuda:") or (torch.cuda.is_available() and local >= count):
        raise UserError(
            f"device={name} and process {local} of this machine, which has {count} GPUs: expected a GPU for each "
            f"process; write device=auto and torchrun --nproc-per-node {max(count, 1)}, or device=cpu"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    return f"cuda:{local}"


def share(count: int, whole: int = 1) -> slice:
    """Slice of `count` rows that this process computes; shares are nearly equal and cut no group of `whole` rows."""
    runs = -(-count // whole)
    start, stop = (runs * number // _size * whole for number in (_rank, _rank + 1))
    return slice(min(start, count), min(stop, count))


def sum_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Sum gradients and the scalar `loss` over the processes, in one exchange; returns the summed loss.

    With several processes a parameter without gradient counts as one whose gradient is zero: a process with no rows
    has none, and all have to take the same step.
    """
    if _size == 1:
        return loss.detach()
    import torch

    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([*(part.flatten() for part in parts), loss.detach().reshape(1)])
    _sum(flat)
    sums = flat[:-1].split([p.numel() for p in parameters])
    for p, part in zip(parameters, sums, strict=True):
        p.grad = part.view_as(p)
    return flat[-1]


def add_up(parts: Sequence[Tensor]) -> list[Tensor]:
    """Sum each of `parts` over the processes, in one exchange; whole numbers are exact up to 2^53."""
    if _size == 1 or not parts:
        return list(parts)
    import torch

    flat = _sum(torch.cat([part.flatten().double() for part in parts]))
    whole = flat.split([part.numel() for part in parts])
    return [total.view_as(part).to(part.dtype) for total, part in zip(whole, parts, strict=True)]


def _sum(tensor: Tensor) -> Tensor:
    import torch.distributed as dist

    with _together():
        dist.all_reduce(tensor)
    return tensor


def everyones(value: T) -> list[T]:
    """Collect the `value` of every process, in the order of their numbers; all processes get the same list."""
    if _size == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _size
    with _together():
        dist.all_gather_object(found, value)
    return found


def gather(parts: Sequence[Tensor], rows: slice, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Collect a float32 matrix of `shape` whose rows the processes share; `parts` are this one's `rows`, in order."""
    import torch

    if _size == 1:
        return torch.cat(list(parts))
    whole = torch.zeros(shape, device=device)
    if parts:
        whole[rows] = torch.cat(list(parts))
    return _sum(whole)  # exact: every row is zero in all processes but one


def on_first(work: Callable[[], T]) -> T:
    """Do `work` in process 0 only, once all processes have called this; all get its result, or its error.

    Raises UserError and OSError as `work` does.
    """
    if _size == 1:
        return work()
    import torch
    import torch.distributed as dist

    _sum(torch.zeros(1))  # waits until no process still reads what is written now
    said: list[Any] = [None, None]
    if _rank == 0:
        try:
            said[0] = work()
        except (UserError, OSError) as error:
            said[1] = error
    with _together():
        dist.broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    result: T = said[0]
    return result


@contextlib.contextmanager
def in_first(make: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """Enter the context that `make` returns in process 0 only; an error on entering is raised in all."""
    with contextlib.ExitStack() as held:
        on_first(lambda: held.enter_context(make()))
        yield


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Context that process 0 passes before the others, which then find what it has downloaded.

    All processes leave it together, so that the next exchange does not time out while one of them still loads.
    Raises UserError where one waits longer than TIMEOUT for another.
    """
    global _turns
    _turns += 1
    keys = [f"turn {_turns}, process {number}" for number in range(_size)]
    if _store is not None and _rank:
        _wait(_store, keys[:1])
    try:
        yield
    finally:
        if _store is not None:
            _store.set(keys[_rank], "done")
    if _store is not None:
        _wait(_store, keys)


def _wait(store: Store, keys: list[str]) -> None:
    """Wait until processes have said that they have loaded everything."""
    try:
        store.wait(keys, TIMEOUT)
    except RuntimeError as error:
        raise UserError(
            f"process {_rank} of {_size} has waited {TIMEOUT.total_seconds() / 60:g} minutes for another to load data "
            "and weights, which has ended or hangs; if it was downloading, run the same line without torchrun until "
            "it learns, then repeat this one"
        ) from error
