"""Randomness as a function of (seed, task, purpose)."""

from __future__ import annotations

import hashlib

import torch


def task_generator(seed: int, task: int, purpose: str) -> torch.Generator:
    """CPU generator that is a function of (seed, task, purpose) alone, never of what ran before.

    This is what makes learning in another process equal to one long run.
    """
    digest = hashlib.sha256(f"{seed}/{task}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
