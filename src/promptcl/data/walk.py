"""List what is below a folder, without what is never an image."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from promptcl.data.kinds import never, visible
from promptcl.data.levels import splits_among
from promptcl.errors import UserError

Listed: TypeAlias = "tuple[list[str], Callable[[str], bytes], dict[str, str]]"
"""Paths, those of folders with `/` at their ends; what reads one; those that cannot be read, each with why."""


def tidied(listed: Listed) -> tuple[list[str], Callable[[str], bytes], dict[str, str], list[str]]:
    """The same without what is never an image and without learners and runs, and the folders of these."""
    paths, read, lost = listed
    paths = visible(paths)
    known = set(paths)
    stores = {path[: -len("learner.json")] for path in paths if path.endswith("/learner.json")}
    runs = {path[: -len("results.json")] for path in paths if path.endswith("/results.json")}
    found = stores | {run for run in runs if f"{run}config.yaml" in known}
    skipped = sorted(one for one in found if not any(one != other and one.startswith(other) for other in found))
    if skipped:
        inside = tuple(skipped)
        kept = [path for path in paths if not path.startswith(inside)]
        files = [path for path in kept if not path.endswith("/")]
        around = {path for path in kept if path.endswith("/") and any(one.startswith(path) for one in skipped)}
        gone = {folder for folder in around if not any(file.startswith(folder) for file in files)}
        paths = [path for path in kept if path not in gone]
    return paths, read, {path: lost[path] for path in visible(lost)}, skipped


def walked(root: Path, everything: bool) -> list[str]:
    """What is below a folder; below those of a split only, or `everything`. Links are followed.

    Raises UserError: a folder that cannot be opened.
    """
    paths: list[str] = []
    started: list[str] = []

    def failed(error: OSError) -> None:
        folder = Path(error.filename)
        if everything or folder == root or f"{folder.relative_to(root).as_posix()}/".startswith(tuple(started)):
            raise UserError(
                f"the folder {folder} cannot be opened ({error.strerror}); make it readable, or take it out"
            )

    for folder, folders, files in os.walk(root, followlinks=True, onerror=failed):
        above = [path for path in Path(folder).parents if path.is_relative_to(root)]
        if any(path.samefile(folder) for path in above):  # a link back to where it came from
            folders.clear()
            continue
        inside = "" if Path(folder) == root else Path(folder).relative_to(root).as_posix() + "/"
        folders[:] = [name for name in folders if not never(name)]
        paths += [*([inside] if inside else []), *(f"{inside}{file}" for file in files)]
        if not everything and not inside.startswith(tuple(started)):
            paths += [f"{inside}{name}/" for name in folders]
            folders[:] = _toward_splits(inside, folders, started)
    return paths


def _toward_splits(inside: str, names: list[str], started: list[str]) -> list[str]:
    """The folders to go into on the way to those of a split, which are added to `started`.

    A wrong root may be a home directory: no more is walked than needed.
    """
    if splits := list(splits_among(names)):
        started += [f"{inside}{name}/" for name in splits]
        return splits
    return names if not inside or len(names) == 1 else []
