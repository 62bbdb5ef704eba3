"""The script for a machine with a GPU runs to its end where there is none, and writes what it found as it goes."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from helpers import ENVIRONMENT, ROOT

MODES = ("eager", "compiled", "cuda graphs")


@pytest.mark.slow
def test_all_of_it_runs_on_a_processor(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--model", "test_vit", "--quick"]
    words = [*command, "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    kinds = [(row["precision"], row["mode"], row["batch"]) for row in found["steps"]]
    assert kinds == [(p, mode, size) for p in ("fp32", "bf16") for mode in MODES for size in (2, 4)]
    assert [row["failed"] for row in found["steps"] if "failed" in row] == []  # as where too much was compiled before
    assert all(row["learning_images_per_second"] > 0 for row in found["steps"])
    assert found["whole_run"]["ended"]
    assert len(found["whole_run"]["tasks"]) == 2
    # The four parameters of l2p have a counter of their own in Adam, on the processor; nothing else is asked for.
    assert found["waits_a_step"]["aten::_local_scalar_dense"] == 4
    assert found["waits_a_step"]["aten::nonzero"] == 0
    assert set(found["seconds"]) == {"machine", "waits", "steps", "whole"}


@pytest.mark.slow
def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--model", "test_vit", "--quick", "--limit", "0", "--out", str(tmp_path / "gpu.json")]

    def script() -> None:
        sys.argv = ["gpu.py", *words]
        runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")

    assert forked.run(script, ROOT, ENVIRONMENT).returncode == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {row.get("left_out") for row in found["steps"]} == {"no time was left"}
    assert not found["whole_run"]["ended"]
