"""What commands print beside sentences, and the example that calls the library."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from helpers import ROOT, done
from rich.cells import cell_len

from promptcl.cli.terminal import bars


def test_bars_fit_eighty_columns() -> None:
    counts = {"a": (1, 2), "日本語の長い名前の花の写真たち": (3, 3), "x" * 70: (0, 12345)}
    lines = bars(counts, {"a": (2, 2)})
    assert all(cell_len(line) <= 80 for line in lines)
    assert "50 %     1/2  was 100 %" in lines[0]
    assert "93 %" in bars({"a": (37, 40)})[0]  # and not 92, to which Python rounds 92.5
    many = bars({str(i): (i, 100) for i in range(100)})
    assert len(many) == 41
    assert many[0].startswith("0 ")
    assert many[-1] == "and 60 more classes, none of them worse"


@pytest.mark.slow
def test_the_example_remembers(tmp_path: Path) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "grow.py"))["main"]
    example.__globals__["promptcl"] = done
    remembered = example(tmp_path)
    assert remembered > 60  # chance is 10
