"""Files of a run: written whole, and read again where the run was finished before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from promptcl.config import Config
from promptcl.runtime import disk

RESULTS = "results.json"
_MOST = 2**28  # bytes


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to the file `path`, all of it or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write(path, text.encode())


def read(folder: Path) -> dict[str, Any]:
    """The results in `folder`. Raises OSError, and ValueError where they are damaged."""
    return json.loads(disk.read(folder / RESULTS, _MOST))  # type: ignore[no-any-return]


def finished(config: Config, folder: Path) -> dict[str, Any] | None:
    """The results in `folder` if a run of this `config`, paths absolute and options filled in, has written them."""
    try:
        results = read(folder)
        return results if results["config"] == config.model_dump(mode="json") else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
