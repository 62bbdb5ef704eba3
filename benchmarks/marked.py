"""Tables of a page that programs write: what stands between `<!-- table: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

BLOCK = re.compile(r"(?P<begin><!-- table: (?P<name>[\w.-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


def write(page: Path, tables: Mapping[str, str], command: str, check: bool = False) -> int:
    """Put `tables` (text by name) into `page`, or with `check` only say that `command` would change it (1, else 0)."""
    old = page.read_text(encoding="utf-8")
    if missing := set(tables) - {match["name"] for match in BLOCK.finditer(old)}:
        print(f"error: {page.name} has no place for {', '.join(sorted(missing))}", file=sys.stderr)
        return 2
    new = BLOCK.sub(lambda m: f"{m['begin']}{tables[m['name']]}{m['end']}" if m["name"] in tables else m[0], old)
    if new != old and check:
        print(f"{page.name} differs from benchmarks/results; run: {command}", file=sys.stderr)
    elif new != old:
        page.write_text(new, encoding="utf-8")
    return int(new != old and check)
