"""One word for one thing, in what a user may read: task (not lesson), image (not picture), learn (not teach)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import ROOT

OTHERS = re.compile(r"\b(?:lessons?|pictures?|teach(?:es|ing)?|taught)\b", re.IGNORECASE)
FORMAT = "memory.picture."  # names of tensors in the store, which cannot change without a new format
READ = [
    *sorted((ROOT / "src" / "promptcl").rglob("*.*")),
    *sorted(ROOT.glob("*.md")),
    *(path for name in ("docs", "examples", "benchmarks", "scripts") for path in sorted((ROOT / name).glob("*.*"))),
]
TEXT = [path for path in READ if path.suffix in {".py", ".md", ".yaml", ".j2"} and path.name != "CHANGELOG.md"]


def found(text: str) -> list[str]:
    """Lines of `text` with another word."""
    return [line.strip() for line in text.splitlines() if OTHERS.search(line.replace(FORMAT, "").replace("_", " "))]


@pytest.mark.parametrize("path", TEXT, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_word_is_used(path: Path) -> None:
    assert found(path.read_text(encoding="utf-8")) == []


def test_other_words_are_found() -> None:
    text = "a task\nthis lesson\nheld_out_pictures\nmemory.picture.3\nTeach it\nthe teacher of a distillation\n"
    assert found(text) == ["this lesson", "held_out_pictures", "Teach it"]
