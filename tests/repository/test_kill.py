"""SIGKILL of real processes that learn, forget, undo and run `train`, on real digits: nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "kill.py"
    command = [sys.executable, str(script), "--kills", "18", "--seed", "1", "--out", str(tmp_path / "kill.json")]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "kill.json").read_text())
    assert report["kills"] >= 18
    assert report["lost"] == 0
    assert all(report[kind]["runs"] > 0 for kind in ("learn", "learn_default", "forget", "undo", "train_stages"))
    assert report["train"]["kills_with_checkpoint"] + report["train_stages"]["kills_with_checkpoint"] > 0
