"""A copy of a module as it is now, for what is learned later to be compared with."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


class Frozen:
    """A teacher: a copy of `module` that nothing trains and that is no part of the state of who holds it.

    It is no Module, so that a method which keeps one as a member saves and resumes without it (LwF, Co2L).
    """

    def __init__(self, module: nn.Module) -> None:
        """Copy `module`, in eval mode and without gradients."""
        self._module = copy.deepcopy(module).requires_grad_(False).eval()

    def __call__(self, *arguments: Any) -> Any:
        """What the copy gives for `arguments`."""
        return self._module(*arguments)

    def __getattr__(self, name: str) -> Any:
        """Members of the copy, such as `logits`."""
        if name == "_module":  # while it is being copied itself
            raise AttributeError(name)
        return getattr(self._module, name)
