"""The results of a run so far, task by task, in a file that only grows: a line of JSON for each save of its learner.

An accuracy matrix grows with the square of the tasks. In the learner's own notes all of it would be written again after
each task; there stands only how much of the file counts, so that both change at one moment, with the learner.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptcl.errors import UserError
from promptcl.runtime import disk


class Journal:
    """The file of one run, and how much of it has been written."""

    def __init__(self, file: Path) -> None:
        """Begin at the start of `file`, which is not touched before the first `write`."""
        self.file = file
        self._bytes, self._sha256 = 0, hashlib.sha256()
        self._written: dict[str, int] = {}

    def read(self, notes: Mapping[str, Any], width: int) -> dict[str, Any]:
        """The results so far, from the `notes` that `write` returned and the part of the file that they name.

        width: columns of the accuracy matrix. Raises UserError where that part is not what was written.
        """
        done = dict(notes)
        mark = done.pop("journal", None)
        if mark is None:  # nothing yet, or a run of an older promptcl, which kept everything in the notes
            return done
        try:
            self._bytes = int(mark["bytes"])
            if not self._bytes:  # nothing was evaluated yet
                return done
            with disk.opened(self.file) as file:
                whole = os.fstat(file.fileno()).st_size >= self._bytes >= 0
                data = file.read(self._bytes) if whole else b""
            self._sha256.update(data)
            whole = whole and self._sha256.hexdigest() == mark["sha256"]
            lines = [json.loads(line) for line in data.splitlines()] if whole else []
            lists = _lists(done)
            for line in lines:
                line["matrix"] = [row + [None] * (width - len(row)) for row in line["matrix"]]
                for name, rows in lists.items():
                    rows += line[name]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or "it is damaged"
            raise UserError(f"{self.file} cannot be read ({reason}): give it back, or begin a new run") from error
        if not whole:
            raise UserError(f"{self.file} is not what was written: give it back, or begin a new run")
        self._written = {name: len(rows) for name, rows in lists.items()}
        return done

    def write(self, done: Mapping[str, Any]) -> dict[str, Any]:
        """Append what is new in `done`; returns the notes to save with the learner. Raises OSError."""
        lists = _lists(done)
        new = {name: rows[self._written.get(name, 0) :] for name, rows in lists.items()}
        if any(new.values()):
            new["matrix"] = [_without_end(row) for row in new["matrix"]]
            line = (json.dumps(new) + "\n").encode()
            self._append(line)
            self._bytes += len(line)
            self._sha256.update(line)
            self._written = {name: len(rows) for name, rows in lists.items()}
        rest = {key: value for key, value in done.items() if key not in lists}
        rest["statistics"] = {"train": [], "test": done["statistics"]["test"]}
        return {**rest, "journal": {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}}

    def _append(self, line: bytes) -> None:
        """Write `line` behind what counts, in place of what a process left there that was killed."""
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self.file, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "wb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{self.file} is no plain file; remove it")
            file.truncate(self._bytes)
            file.seek(self._bytes)
            file.write(line)
            file.flush()
            os.fsync(descriptor)
        disk.sync_folder(self.file.parent)


def _lists(done: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The parts of the results that only grow."""
    return {
        "records": done["records"],
        "matrix": done["matrix"],
        "warnings": done["warnings"],
        "train": done["statistics"]["train"],
    }


def _without_end(row: list[float | None]) -> list[float | None]:
    """A row of the matrix without the empty cells at its end."""
    length = next((i for i in range(len(row), 0, -1) if row[i - 1] is not None), 0)
    return row[:length]
