"""The bar of the first reading, images a second of the input side, and the page that shows them."""

from __future__ import annotations

import io
from pathlib import Path

import inputs as benchmark
import numpy as np
import torch
from helpers import make_config
from PIL import Image
from rich.console import Console

from promptcl.cli.report import lines
from promptcl.data import ImageSet, concat
from promptcl.experiments.inputs import input_rates
from promptcl.experiments.reading import ReadingBar


def shown(terminal: bool, seconds: float) -> str:
    """What a bar shows of ten steps that take so long each."""
    clock = iter(seconds * step for step in range(100))
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None)
    bar = ReadingBar(console, lambda: next(clock))
    for done in range(0, 101, 10):
        bar.tell(done, 100)
    return file.getvalue()


def test_a_long_reading_has_a_bar_on_a_terminal_only() -> None:
    assert "reading images" in shown(terminal=True, seconds=0.5)
    assert "100/100" in shown(terminal=True, seconds=0.5)
    assert shown(terminal=True, seconds=0.05) == ""  # it is over before anybody wonders
    assert shown(terminal=False, seconds=9) == ""
    ReadingBar(None).tell(1, 2)


def test_the_input_side_is_measured_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    files = ImageSet.from_files(sorted(tmp_path.iterdir()), ["a"] * 6)
    arrays = ImageSet.from_arrays(rng.integers(0, 256, (3, 8, 8), dtype=np.uint8), ["b"] * 3)
    found = input_rates(concat([files, arrays]), make_config(), 32, 2, torch.device("cpu"))
    assert found["images"] == 9
    assert list(found["workers"]) == ["1", "2", "4"]
    for one in found["workers"].values():
        assert 0 < one["lowest"] <= one["images_per_second"] <= one["highest"]
        assert one["cpu_seconds"] > 0
    assert files.sources[0].kept_bytes == 0  # type: ignore[attr-defined]  # nothing came from a cache, or went there
    rate = {"images_per_second": 1.0, "lowest": 1.0, "highest": 1.0}
    result = {"train": rate, "evaluate": rate, "evaluate_again": rate, "input": found}
    (line,) = [one for one in lines({**result, "memory_bytes": None, "first_step_seconds": None}) if "input" in one]
    assert "images/s with 1, 2, 4 workers" in line


def test_the_page_shows_what_was_measured() -> None:
    assert benchmark.main(["--check"]) == 0, "run: python benchmarks/inputs.py"
