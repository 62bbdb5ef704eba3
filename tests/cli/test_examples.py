"""What commands print beside sentences, and the example that calls the library."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import forked
import pytest
from helpers import ENVIRONMENT, ROOT
from rich.cells import cell_len

from promptcl.cli.terminal import bars


def test_bars_fit_eighty_columns() -> None:
    counts = {"a": (1, 2), "日本語の長い名前の花の写真たち": (3, 3), "x" * 70: (0, 12345)}
    lines = bars(counts, {"a": (2, 2)})
    assert all(cell_len(line) <= 80 for line in lines)
    assert "50 %     1/2  was 100 %" in lines[0]
    many = bars({str(i): (i, 100) for i in range(100)})
    assert len(many) == 41
    assert many[0].startswith("0 ")
    assert many[-1] == "and 60 more classes, none of them worse"


@pytest.mark.slow
def test_the_example_remembers(tmp_path: Path) -> None:
    def example() -> None:
        sys.argv = ["grow.py", str(tmp_path)]
        runpy.run_path(str(ROOT / "examples" / "grow.py"), run_name="__main__")

    done = forked.run(example, tmp_path, ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    remembered = float(done.stdout.rsplit("of the first five digits, ")[1].split(" %")[0])
    assert remembered > 60  # chance is 10
