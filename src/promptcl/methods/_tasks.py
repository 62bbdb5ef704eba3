"""Base of the methods that have to know which task introduced a class. Not a method itself. K classes so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.methods._base import Method, TaskView


def warn_of_known(task: TaskView, what: str) -> None:
    """Say in a task without new classes what a method that trains a head a task then does not do."""
    if task.index and not task.new_classes:
        task.warn(f"task {task.index + 1} has no new class, so {what}; `sprompts` is made for domains of known classes")


class KnowsTasks(Method):
    """Notes the task of each class; refuses a stream without boundaries."""

    task_of_class_K: Tensor
    """Number of the task that introduced each class."""

    def __init__(self, options: Any, backbone: Backbone, generator: torch.Generator) -> None:
        """Start with no class."""
        super().__init__(options, backbone, generator)
        self.index = 0
        """Number of the newest task."""
        self.register_buffer("task_of_class_K", torch.zeros(0, dtype=torch.long))

    @classmethod
    def reads(cls, options: Any) -> tuple[str, ...]:
        """Training; nothing is replayed, since what earlier tasks learned is frozen."""
        return ("train.",)

    def grow(self, task: TaskView) -> None:
        """Note the task of its new classes."""
        self.index = task.index
        new_K = self.task_of_class_K.new_full((task.new_classes,), task.index)
        self.task_of_class_K = torch.cat([self.task_of_class_K, new_K])
