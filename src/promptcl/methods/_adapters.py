"""Base of the methods with an adapter for each task: ease, tuna.

Not a method itself. S tasks so far, B images, D width, K classes so far.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.layers.adapters import Adapters
from promptcl.methods._base import Batch, TaskView
from promptcl.methods._tasks import KnowsTasks


class TaskAdapters(KnowsTasks):
    """Adapters beside the MLPs, drawn anew for each task; those of earlier tasks are frozen."""

    def begin(self, backbone: Backbone, inner: int, generator: torch.Generator) -> None:
        """Make room for adapters of this inner width; to be called once, in the constructor."""
        adapters = Adapters(backbone, inner, generator)
        self._anew: Callable[[torch.Generator], Adapters] = adapters.anew
        self.adapters = nn.ModuleList()

    def grow(self, task: TaskView) -> None:
        """Freeze the adapters so far and make those of this task."""
        super().grow(task)
        self.adapters.requires_grad_(False)
        self.adapters.append(self._anew(task.generator))

    @property
    def present(self) -> Adapters:
        """The adapters of the newest task."""
        return cast(Adapters, self.adapters[-1])

    def feature(self, backbone: Backbone, batch: Batch, number: int) -> Tensor:
        """Class token [B, D] of the model with the adapters of task `number`, once for each image that is tested."""
        adapters = cast(Adapters, self.adapters[number])

        def adapted() -> Tensor:
            pooled_BD: Tensor = backbone(batch.images_BCHW, adapters.inserts()).pooled_BD
            return pooled_BD

        return batch.once(f"adapters {number}", adapted, *adapters.parameters())

    @abstractmethod
    def trained_head(self) -> list[nn.Parameter]:
        """What is trained beside the adapters of the task."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The adapters of the task and the head, at `lr`."""
        adapters = list(self.present.parameters()) if len(self.adapters) else []
        return [{"params": [*adapters, *self.trained_head()], "lr": lr}]
