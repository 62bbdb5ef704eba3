"""Randomness as a function of where it is used: of (seed, task, purpose), never of what ran before."""

from __future__ import annotations

import hashlib

import torch


def task_generator(seed: int, task: int, purpose: str) -> torch.Generator:
    """CPU generator that is a function of (seed, task, purpose) alone.

    This is what makes learning in another process equal to one long run, and an interrupted stage go on at any step:
    its purpose names the stage and the step.
    """
    digest = hashlib.sha256(f"{seed}/{task}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
