"""What torchrun starts in test_processes.py: several runs in one group of processes, for starting one takes seconds.

Arguments: jobs.json, the folder for them, the folder of an interrupted run to finish.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from helpers import make_config
from torch import Tensor

from promptcl.backbone.vit import Backbone
from promptcl.cli import main as cli
from promptcl.config.schema import Config
from promptcl.errors import UserError
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.layers import Sum
from promptcl.methods._base import Batch, Method, TaskView
from promptcl.runtime import processes
from promptcl.training.exchange import Exchange


def main(jobs: Path, out: Path, interrupted: Path) -> None:
    with processes.group():
        for name, settings in json.loads(jobs.read_text()).items():
            experiment.run(Config.model_validate(settings), out / name, QuietUi(out, write=lambda line: None))
        cli.app(["train", "--resume", str(interrupted), "--quiet"], standalone_mode=False)
        errors = []
        for error in (UserError("one sentence"), OSError(28, "full", "disk")):
            try:
                processes.on_first(lambda error=error: fail(error))  # type: ignore[misc]
            except (UserError, OSError) as raised:
                errors.append(repr(raised))
        said = {"processes": processes.size(), "errors": errors, **exchanged(), **summed()}
        (out / f"said{processes.rank()}").write_text(json.dumps(said))


def exchanged() -> dict[str, Any]:
    """What `add_up` and `everyones` give."""
    rank = processes.rank()
    parts = [torch.tensor([1.0, 10.0]) * (rank + 1), torch.tensor([[rank + 2**51]]), torch.zeros(0).double()]
    whole = processes.add_up(parts)
    return {
        "add_up": [part.tolist() for part in whole],
        "types": [str(part.dtype) for part in whole],
        "everyones": processes.everyones({"mine": rank}),
    }


class Counter(Method):
    """Adds whatever it is told to."""

    def __init__(self) -> None:
        super().__init__(None, Backbone.create(make_config().backbone), torch.Generator())
        self.sum_K = Sum(1)
        self.unsaved = Sum(1, dtype=torch.long, persistent=False)
        self.sum_K.value += 100
        self.unsaved.value += 7

    def grow(self, task: TaskView) -> None:
        pass

    def logits(self, backbone: Backbone, batch: Batch) -> Tensor:
        return torch.zeros(0)


def summed() -> dict[str, Any]:
    """What sums and statistics are once both processes have added theirs."""
    method, rank = Counter(), processes.rank()
    exchange = Exchange(method, torch.device("cpu"))
    mine = torch.tensor(10.0 if rank else 1.0)
    exchange.begin()
    method.sum_K.grow(1)
    method.sum_K.add(mine.expand(2))
    method.unsaved.add(mine.expand(1))
    if rank:
        method.stats.count("prompts", torch.tensor([0, 1, 3]), 4)
        method.stats.count("experts", torch.tensor([0, 1]), 2)
        method.stats.mean("cosine", torch.tensor([2.0, 6.0]))
    else:
        method.stats.count("prompts", torch.tensor([0]), 3)
        method.stats.mean("cosine", torch.tensor([1.0]))
    exchange.end()
    found = {"sum": method.sum_K.value.tolist(), "unsaved": method.unsaved.value.tolist()}
    taken = method.stats.take()
    exchange.begin()
    method.sum_K.add_rows(torch.tensor([0, 1]), mine.expand(2))
    exchange.end()
    return {
        **found,
        "again": method.sum_K.value.tolist(),
        "counts": {name: value for name, value in taken.items() if isinstance(value, list)},
        "means": {name: value for name, value in taken.items() if isinstance(value, float)},
    }


def fail(error: Exception) -> None:
    assert processes.rank() == 0
    raise error


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
