"""Run several methods on one stream, with the same seeds and backbone, and put them side by side in compare.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from promptcl.backbone import Backbone
from promptcl.config import Config
from promptcl.data import load_domains, make_stream
from promptcl.data.splits import Domain
from promptcl.errors import UserError
from promptcl.experiments import files
from promptcl.experiments import seeds as repeat
from promptcl.experiments.metrics import mean_std, speed
from promptcl.experiments.progress import Ui
from promptcl.learner import Learner
from promptcl.methods._base import load_method
from promptcl.runtime import processes
from promptcl.runtime.device import pick_device, with_precision

FILE = "compare.json"
"""File with a row for each method, in the folder of the comparison."""
METRICS = {
    "average_accuracy": "last_accuracy",
    "average_incremental_accuracy": "average_incremental_accuracy",
    "forgetting": "forgetting",
}
"""Names in results.json, and here, where the accuracy after the last task is called so."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One method of a comparison."""

    name: str
    """As it was asked for: a method and settings of its own."""
    folder: str
    """Name of the folder of its runs."""
    configs: Sequence[Config]
    """One for each seed."""
    published: str = ""
    """The number that a paper has for it."""


class Shown(Protocol):
    """Who shows a comparison while it runs."""

    def ui(self, entry: Entry, seed: int) -> Ui:
        """What the run of one seed tells its progress to."""

    def row(self, row: Row) -> None:
        """A method has been run with all seeds."""


def run(entries: Sequence[Entry], out: Path, shown: Shown) -> list[Row]:
    """Run each method with each seed into `out`/FOLDER/seedN, and write `out`/compare.json after each method.

    Finished runs are kept and an interrupted one goes on, so the same call may be made again. A method that fails has
    `failed`, a sentence, in its row, and the others go on.

    Raises:
        UserError: the runs of another comparison are in the way; data, weights, or settings of any method that cannot
            be used, before anything is run.
        OSError: `out` cannot be written.
    """
    ends = [[repeat.finished(c, out / entry.folder / f"seed{c.seed}") for c in entry.configs] for entry in entries]
    with processes.first_alone():  # process 0 downloads what is missing
        _check([entry for entry, found in zip(entries, ends, strict=True) if None in found])
    rows: list[Row] = []
    for entry in entries:
        folder = out / entry.folder
        try:
            repeat.run(entry.configs, folder, _ui_of(entry, shown))
            rows.append(row(entry, [files.read(folder / f"seed{config.seed}") for config in entry.configs]))
        except UserError as error:
            if not rows and not any(folder.glob("seed*/config.yaml")):  # nothing was begun, as with a bad image
                raise
            rows.append(row(entry, []) | {"failed": str(error)})
        shown.row(rows[-1])
        files.write_atomically(out / FILE, json.dumps(rows, indent=1) + "\n")
    return rows


def _check(entries: Sequence[Entry]) -> None:
    """Raise UserError for what cannot be run: hours of other methods would pass before that is said."""
    data: dict[str, list[Domain]] = {}
    backbones: dict[str, Backbone] = {}
    for entry in entries:
        config = entry.configs[0]  # other seeds differ in nothing that could be refused
        config = with_precision(config, pick_device(config.device))
        key = config.data.model_dump_json()
        if key not in data:
            data[key] = load_domains(config.data)
        make_stream(data[key], config)
        key = config.backbone.model_dump_json()
        if key not in backbones:
            backbones[key] = Backbone.create(config.backbone)
        try:
            Learner(config, backbones[key])
        except UserError as error:
            raise UserError(f"{entry.name}: {error}") from error


def _ui_of(entry: Entry, shown: Shown) -> Callable[[Path], Ui]:
    return lambda folder: shown.ui(entry, int(folder.name.removeprefix("seed")))


def row(entry: Entry, results: Sequence[dict[str, Any]]) -> Row:
    """What a comparison says of a method: mean and standard deviation over seeds (null for one), speeds, sizes.

    `last_accuracy` is A_T, the mean over tasks after the last one; `average_incremental_accuracy` is the mean of that
    number after every task; null where a stream has no such thing. Speeds are images a second over all tasks.
    """
    learned, _, passes = load_method(entry.configs[0].method["name"]).about.rpartition("; ")
    made: Row = {"method": entry.name, "folder": entry.folder, "seeds": [config.seed for config in entry.configs]}
    for name, here in METRICS.items():
        found = mean_std([one[name] for one in results])
        made[here] = found and {"mean": found[0], "std": found[1] if len(results) > 1 else None}
    for name, most in (("trained_parameters", max), ("stored_bytes", max), ("memory_images", max)):
        made[name] = most((one.get(name) or 0 for one in results), default=None)
    for kind in ("train", "eval"):
        made[f"{kind}_images_per_second"] = speed([one["tasks"] for one in results], kind)
    made["seconds"] = statistics.mean(one["seconds"] for one in results) if results else None
    return made | {"learned": learned, "passes": passes} | ({"published": entry.published} if entry.published else {})
