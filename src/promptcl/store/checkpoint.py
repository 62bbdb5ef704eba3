"""Checkpoints of the task being learned, from which a killed process is continued with the same bits.

The folder `checkpoint` inside a store has a pair of files (see `files`) for each finished stage of the task and one for
the stage that is being trained.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from promptcl.errors import UserError
from promptcl.store import files

FORMAT = 2
KIND = files.Kind(
    "checkpoint of promptcl", FORMAT, "delete this folder to learn what was interrupted from its start again"
)


class Checkpoint:
    """Checkpoint of one task in a store: its finished stages and the one that is being trained."""

    def __init__(self, store: Path, identity: Mapping[str, Any], steps: int, seconds: float | None = None) -> None:
        """Begin a checkpoint in `store`, due every `steps` steps and when `seconds` have passed since the last one.

        identity: JSON values that say what is learned; the one under `base` is the checksum of the store, the one under
        `task` the number of the task. A checkpoint with others is outdated and ignored, one with the same belongs to an
        interrupted `learn`.
        Raises UserError: the folder is a link, which in a stranger's store may lead anywhere.
        """
        self.store, self.folder = store, store / "checkpoint"
        if self.folder.is_symlink():
            raise UserError(f"{self.folder} is a link, expected a folder of the store; remove it")
        self.identity, self.steps, self.seconds = dict(identity), steps, seconds
        self.seconds_before = 0.0
        self._began = self._written = time.perf_counter()
        self._cost = 0.0  # seconds that the last write took

    def due(self, step: int, epoch_ends: bool) -> bool:
        """Whether a checkpoint is due after step `step` of a stage.

        At the end of an epoch too, except where writing (a trained ViT is a gigabyte) would take a tenth of the time.
        """
        since = time.perf_counter() - self._written
        if self.seconds is None:  # several processes, whose clocks differ
            return epoch_ends or step % self.steps == 0
        return since >= self.seconds or step % self.steps == 0 or (epoch_ends and since >= 10 * self._cost)

    def write(self, stage: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], finished: bool) -> None:
        """Write the checkpoint of `stage` in place of its last one. Raises UserError where it cannot be written.

        tensors and numbers (JSON values): all that the rest of the stage depends on, or its result if `finished`.
        """
        now = time.perf_counter()
        seconds = self.seconds_before + now - self._began
        document = {"format": FORMAT, "identity": self.identity, "seconds": seconds, "finished": finished, **numbers}
        files.write_pair(self._path(stage), document, tensors)
        self._written = time.perf_counter()
        self._cost = self._written - now

    def read(self, stage: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and numbers of `stage` as last written (`finished` among the numbers); None where there are none.

        Raises UserError: something else was interrupted here, or the checkpoint is damaged.
        """
        path = self._path(stage)
        try:
            kept = files.read_json(path, KIND)[0].get("identity")
        except files.Absent:
            return None
        if not isinstance(kept, dict) or any(kept.get(key) != self.identity[key] for key in ("base", "task")):
            return None
        if kept != self.identity:
            differing = [key for key in self.identity if kept.get(key) != self.identity[key]]
            raise UserError(
                f"learning was interrupted in {self.store} with other {' and '.join(differing)}: repeat what was "
                f"interrupted, or delete the folder {self.folder} to give it up"
            )
        pair = files.read_pair(path, KIND)
        try:
            self.seconds_before = float(pair.document["seconds"])
        except (KeyError, ValueError, TypeError) as error:
            raise self.unfit(error) from error
        return pair.tensors, pair.document

    def unfit(self, error: Exception) -> UserError:
        """The error for a checkpoint that is undamaged but does not fit what is learned."""
        return UserError(f"{self.folder} does not fit what is learned ({error!r}): {KIND.remedy}")

    def _path(self, stage: int) -> Path:
        return self.folder / f"stage-{stage}.json"


def interrupted(store: Path) -> bool:
    """Whether `store` holds a checkpoint of a task that was not finished."""
    return any((store / "checkpoint").glob("*.json"))


def discard(store: Path) -> None:
    """Remove the checkpoint of `store`, if there is one; other files in a folder of that name stay."""
    folder = store / "checkpoint"
    if not folder.is_symlink():
        # `checkpoint.json` is what format 1 wrote.
        for path in sorted([*folder.glob("stage-*.json"), *folder.glob("checkpoint.json")]):
            files.remove_pair(path)
