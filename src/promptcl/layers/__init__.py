"""Parts that methods are made of; nothing here knows tasks."""

from promptcl.layers.heads import ClassMeans, GrowingLinear, RidgeHead
from promptcl.layers.prompts import PromptPool, cosine

__all__ = ["ClassMeans", "GrowingLinear", "PromptPool", "RidgeHead", "cosine"]
