"""Where the learning of one task stands, kept on disk: a killed process goes on bit for bit as if it had not been.

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
    """The stages of one task, finished and running, as they lie in a store."""

    def __init__(self, store: Path, identity: Mapping[str, Any], steps: int, seconds: float | None = None) -> None:
        """Write every `steps` steps, and where `seconds` have passed since the last time.

        identity: JSON values that say what is learned; the one under `base` is the checksum of the store. A checkpoint
        with another base is of no use any more, one with the same base belongs to an interrupted learn.
        Raises UserError: the folder is a link, which in a stranger's store may lead anywhere.
        """
        self.store, self.folder = store, store / "checkpoint"
        if self.folder.is_symlink():
            raise UserError(f"{self.folder} is a link, expected a folder of the store; remove it")
        self.identity, self.steps, self.seconds = dict(identity), steps, seconds
        self.seconds_before = 0.0
        self._began = self._written = time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether to write after step `step` of a stage."""
        late = self.seconds is not None and time.perf_counter() - self._written >= self.seconds
        return late or step % self.steps == 0

    def write(self, stage: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], finished: bool) -> None:
        """Keep where `stage` stands, in the place of what was kept of it. Raises UserError where it cannot be written.

        tensors and numbers (JSON values): all that decides how it goes on, or what it ended with.
        """
        now = time.perf_counter()
        seconds = self.seconds_before + now - self._began
        document = {"format": FORMAT, "identity": self.identity, "seconds": seconds, "finished": finished, **numbers}
        files.write_pair(self._path(stage), document, tensors)
        self._written = now

    def read(self, stage: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and numbers of `stage` as last kept (`finished` among the numbers); None where it was never begun.

        Raises UserError: something else was interrupted here, or the checkpoint is damaged.
        """
        path = self._path(stage)
        try:
            kept = files.read_json(path, KIND)[0].get("identity")
        except files.Absent:
            return None
        if not isinstance(kept, dict) or kept.get("base") != self.identity["base"]:
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
        """What to raise where a checkpoint is whole but does not fit what is learned."""
        return UserError(f"{self.folder} does not fit what is learned ({error!r}): {KIND.remedy}")

    def _path(self, stage: int) -> Path:
        return self.folder / f"stage-{stage}.json"


def interrupted(store: Path) -> bool:
    """Whether a task was begun in `store` and not ended."""
    return any((store / "checkpoint").glob("*.json"))


def discard(store: Path) -> None:
    """Remove the checkpoint of `store`, if there is one; other files in a folder of that name stay."""
    folder = store / "checkpoint"
    if not folder.is_symlink():
        # `checkpoint.json` is what format 1 wrote.
        for path in sorted([*folder.glob("stage-*.json"), *folder.glob("checkpoint.json")]):
            files.remove_pair(path)
