"""The memory's split into images to train on and images for validation that are never trained on (BiC).

Not a method itself. M images of the memory, N new ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from promptcl.data import ImageSet
from promptcl.errors import UserError
from promptcl.methods._base import TaskView


class Parts(NamedTuple):
    """What becomes of new and remembered images."""

    train: ImageSet
    """New images without those for validation."""
    replay: ImageSet | None
    """Images of earlier tasks to train on; None where there are none."""
    validation: ImageSet
    """Images of all classes that are never trained on."""
    aside_N1: Tensor
    """1 for each new image that is set aside for validation, else 0; the memory is to keep it as `aside`."""


def split(task: TaskView, share: float, who: str) -> Parts:
    """Set aside `share` of what the memory holds of each class, at least one image where it holds two.

    Whether an image of an earlier task is aside was said when it was new, and the memory has kept it. Images that were
    held out then (`train.holdout`) came into the memory later; they are trained on.
    Raises UserError where there is no memory; `who` says it.
    """
    stored = task.remember()
    if stored is None:
        raise UserError(f"{who} needs images of earlier tasks; write memory.per_class=10")
    unknown = torch.full((1, 1), torch.nan)
    aside_M = task.collect(lambda b: b.kept.get("aside", unknown.expand(len(b.labels_B), 1)), stored)[:, 0].cpu()
    unsaid, new = aside_M.isnan().numpy(), {task.new.digest(i) for i in range(len(task.new))}
    fresh = unsaid & np.array([stored.digest(i) in new for i in range(len(stored))])
    chosen: list[int] = []
    for label in np.unique(stored.labels[fresh]):
        rows = np.flatnonzero(fresh & (stored.labels == label))
        count = round(share * len(rows)) or int(len(rows) > 1)
        chosen += rows[torch.randperm(len(rows), generator=task.generator)[:count].numpy()].tolist()
    held = {stored.digest(i) for i in chosen}
    is_held = [task.new.digest(i) in held for i in range(len(task.new))]
    old = np.flatnonzero((aside_M == 0).numpy() | (unsaid & ~fresh))
    return Parts(
        task.new.select(np.flatnonzero(~np.array(is_held))),
        stored.select(old) if len(old) else None,
        stored.select(np.sort(np.concatenate([np.flatnonzero((aside_M == 1).numpy()), np.array(chosen, dtype=int)]))),
        torch.tensor(is_held, dtype=torch.float32)[:, None],
    )
