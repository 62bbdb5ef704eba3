"""Links inside archives, which are followed where they point to what is in the archive, and only there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from promptcl.errors import UserError

MAX_LINKED = 100_000  # files that links may add
_MAX_HOPS = 40  # links that one name may lead over, as on Linux
Member = TypeVar("Member")


def link_target(link: str, target: str) -> str | None:
    """The path in the archive that `link` points to, from the top; None where that is outside of it."""
    target = target.replace("\\", "/")
    if not target or target.startswith("/"):
        return None
    parts: list[str] = []
    for part in [*link.split("/")[:-1], *target.split("/")]:
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def with_linked(
    archive: Path, members: Mapping[str, Member], links: Mapping[str, str | None], lost: dict[str, str]
) -> dict[str, Member]:
    """The members, and what links to files and folders of the archive add; other links are added to `lost`.

    Raises UserError where links add more than MAX_LINKED files.
    """
    found, names = dict(members), sorted(members)
    for link in links:
        path = _resolved(link, links)
        inside = [] if path is None else _below(names, f"{path}/" if path else "")
        if path is not None and path in members:
            found[link] = members[path]
        elif path is None or not inside:
            lost[link] = "linked to what is not in the archive"
        elif not link.startswith(f"{path}/" if path else ""):  # else a link back to where it came from
            found |= {f"{link}/{name[len(path) + bool(path) :]}": members[name] for name in inside}
        if len(found) > len(members) + MAX_LINKED:
            raise UserError(f"the links in the archive {archive} add more than {MAX_LINKED:,} files; take them out")
    return found


def _below(names: list[str], folder: str) -> list[str]:
    """Those of the sorted names that start with `folder`."""
    return names[bisect_left(names, folder) : bisect_left(names, f"{folder}\U0010ffff")]


def _resolved(path: str, links: Mapping[str, str | None]) -> str | None:
    """The path that `path` stands for after all links on its way; None where they lead outside or in a circle."""
    for _ in range(_MAX_HOPS):
        parts = path.split("/")
        heads = ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        link = next((head for head in heads if head in links), None)
        if link is None:
            return path
        target = links[link]
        if target is None:
            return None
        path = f"{target}{path[len(link) :]}".lstrip("/")
    return None
