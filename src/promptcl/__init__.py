"""Prompt-based continual learning: a frozen, pre-trained vision transformer that learns new classes without forgetting.

These are the names to build on; all else may move without notice. Each is imported when it is first used, so that
`import promptcl` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptcl import testing as testing
    from promptcl.backbone import Backbone, Change, Prefix, Tokens, Weight
    from promptcl.config import Config
    from promptcl.data import ImageSet, class_incremental, domain_incremental, load_split
    from promptcl.errors import UserError
    from promptcl.layers import Sum
    from promptcl.learner import Evaluation, Learner, LearnRecord, Prediction
    from promptcl.methods._base import Batch, Method, Stage, TaskView
    from promptcl.recipes import load_config

    __version__: str

_HOME = {
    "promptcl.backbone": ("Backbone", "Change", "Prefix", "Tokens", "Weight"),
    "promptcl.config": ("Config",),
    "promptcl.data": ("ImageSet", "class_incremental", "domain_incremental", "load_split"),
    "promptcl.errors": ("UserError",),
    "promptcl.layers": ("Sum",),
    "promptcl.learner": ("Evaluation", "LearnRecord", "Learner", "Prediction"),
    "promptcl.methods._base": ("Batch", "Method", "Stage", "TaskView"),
    "promptcl.recipes": ("load_config",),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Backbone",
    "Batch",
    "Change",
    "Config",
    "Evaluation",
    "ImageSet",
    "LearnRecord",
    "Learner",
    "Method",
    "Prediction",
    "Prefix",
    "Stage",
    "Sum",
    "TaskView",
    "Tokens",
    "UserError",
    "Weight",
    "__version__",
    "class_incremental",
    "domain_incremental",
    "load_config",
    "load_split",
]


if not TYPE_CHECKING:  # a checker that saw this would take every name for a public one

    def __getattr__(name: str) -> Any:
        """Import a public name on its first use."""
        if name == "__version__":
            from importlib.metadata import version

            return version("promptcl")
        if name == "testing":
            return importlib.import_module("promptcl.testing")
        if name not in _MODULES:
            raise AttributeError(f"module 'promptcl' has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)
