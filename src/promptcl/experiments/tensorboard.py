"""Write TensorBoard event files of a run, task by task. Needs the extra `tensorboard`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, cast

from torch.utils.tensorboard import SummaryWriter

from promptcl.experiments.progress import Ui

SCALARS = (
    "average_accuracy",
    "forgetting",
    "online_accuracy",
    "seen_accuracy",
    "train_images_per_second",
    "eval_images_per_second",
)


class _Events:
    """A Ui that passes everything on and writes the numbers of each task."""

    def __init__(self, ui: Ui, folder: Path) -> None:
        self._ui = ui
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ui, name)

    def task_done(self, record: dict[str, Any]) -> None:
        self._ui.task_done(record)
        if self._writer is None:  # not before: nothing is written unless the run has begun well
            # Its names can be guessed, and it opens whatever lies there: links too.
            self._writer = SummaryWriter(str(self._folder), filename_suffix=f".{secrets.token_hex(8)}")
        step = record["task"] + 1
        values = {name: record[name] for name in SCALARS if record.get(name) is not None}
        values |= {f"accuracy/task {i + 1:03}": accuracy for i, accuracy in enumerate(record["accuracies"])}
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def with_events(ui: Ui, folder: Path) -> Ui:
    """A Ui that shows what `ui` shows and writes event files into `folder` (for `tensorboard --logdir`)."""
    return cast(Ui, _Events(ui, folder))
