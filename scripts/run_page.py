"""Do what a page of the documentation prints, as printed: `python scripts/run_page.py docs/adding.md FOLDER [COMMAND]`.

In FOLDER, from top to bottom: a block of Python after `<!-- file: NAME -->` is written to that file, another one is run
as a program by this Python, and so is every line of a `sh` block, which begins with `promptcl`: COMMAND is the file of
that command, by default what an installed one does. The first thing that fails ends it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# As the installed command starts it: the current folder is not on Python's path.
INSTALLED = "import sys; sys.path = [p for p in sys.path if p]; from promptcl.cli.main import main; main()"
BLOCK = re.compile(r"(?:<!-- file: (?P<file>[\w.]+) -->\n)?```(?P<kind>python|sh)\n(?P<text>.*?)```", re.DOTALL)


class Block(NamedTuple):
    """A block of a page."""

    kind: str
    """python or sh."""
    file: str | None
    """The file that it is to be saved as."""
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of Python and of commands in the text of a page, in order."""
    return [Block(match["kind"], match["file"], match["text"]) for match in BLOCK.finditer(page)]


def follow(page: str, folder: Path, promptcl: Sequence[str] = (sys.executable, "-c", INSTALLED)) -> None:
    """Do what the text of a page says, in `folder`. Raises CalledProcessError at the first thing that fails."""
    for block in blocks(page):
        if block.kind == "sh":
            for line in filter(None, (shlex.split(line, comments=True) for line in block.text.splitlines())):
                name, *words = line
                if name != "promptcl":
                    raise ValueError(f"{name} {' '.join(words)}: expected a line that begins with promptcl")
                print("$", *line, flush=True)
                subprocess.run([*promptcl, *words], cwd=folder, check=True)
        elif block.file is None:
            print(block.text, flush=True)
            subprocess.run([sys.executable, "-c", block.text], cwd=folder, check=True)
        else:
            print(f"== {block.file}", flush=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")


def main(page: str, folder: str, *command: str) -> int:
    """Follow the page; the exit code says whether all of it worked."""
    text = Path(page).read_text(encoding="utf-8")
    try:
        follow(text, Path(folder), command) if command else follow(text, Path(folder))
    except subprocess.CalledProcessError as error:
        print(f"error: what {page} prints does not work here, exit code {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
