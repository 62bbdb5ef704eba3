"""Shared fixtures: one thread a process, and the real data and weights where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder with data/ and weights/ (real images, real weights); tests that need it skip where it is absent."""
    root = Path(os.environ.get("PROMPTCL_TEST_ASSETS", Path(__file__).parents[2] / "shared"))
    if not (root / "weights").is_dir():
        pytest.skip(
            f"real data and weights not found in {root}; set PROMPTCL_TEST_ASSETS to a folder with data/ and weights/"
        )
    return root
