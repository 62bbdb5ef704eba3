"""Run one recipe with several seeds and write summary.json over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from promptcl.config import Config
from promptcl.errors import UserError
from promptcl.experiments import files
from promptcl.experiments import run as experiment
from promptcl.experiments.metrics import mean_std
from promptcl.experiments.progress import Ui
from promptcl.runtime import processes
from promptcl.runtime.device import pick_device, with_precision
from promptcl.store import with_absolute_paths

METRICS = (
    *("average_accuracy", "forgetting", "learning_accuracy", "online_accuracy", "anytime_accuracy"),
    "average_incremental_accuracy",
)


def run(configs: Sequence[Config], out: Path, make_ui: Callable[[Path], Ui]) -> dict[str, Any]:
    """Run each configuration into `out`/seedSEED and write `out`/summary.json: n, mean and std of every metric.

    A run that is already there is kept if its settings are the same, and one that was interrupted goes on, so the
    command can be given again after it was interrupted. A metric that a method does not have is null.

    Raises:
        UserError: as experiment.run; a finished run with other settings is in the way.
        OSError: `out` cannot be written.
    """
    results = processes.on_first(lambda: [finished(config, out / f"seed{config.seed}") for config in configs])
    for i, config in enumerate(configs):
        folder = out / f"seed{config.seed}"
        results[i] = results[i] or experiment.run(config, folder, make_ui(folder), resume=True)
    summary: dict[str, Any] = {"seeds": [config.seed for config in configs], "n": len(configs)}
    for metric in METRICS:
        found = mean_std([one.get(metric) for one in results if one is not None])
        summary[metric] = found and {"mean": found[0], "std": found[1] if len(configs) > 1 else None}
    text = json.dumps(summary, indent=1) + "\n"
    processes.on_first(lambda: files.write_atomically(out / "summary.json", text))
    return summary


def describe(summary: dict[str, Any]) -> str:
    """One line that says the means and standard deviations of a summary."""
    means = []
    for metric in METRICS[:5]:
        if (found := summary[metric]) is not None:
            spread = "" if found["std"] is None else f" ± {found['std']:.2f}"
            means.append(f"{metric.replace('_', ' ')} {found['mean']:.2f}{spread}")
    return f"{summary['n']} seeds: {', '.join(means)}"


def finished(config: Config, folder: Path) -> dict[str, Any] | None:
    """Results of a finished run of `config` in `folder`; None if there are none.

    Raises UserError where those of a run with other settings are there.
    """
    path = folder / files.RESULTS
    results = files.finished(with_absolute_paths(with_precision(config, pick_device(config.device))), folder)
    if results is None and path.exists():
        raise UserError(f"{path}: a run with other settings is there; write another folder, or delete that one first")
    return results
