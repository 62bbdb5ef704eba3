"""Building blocks of methods: heads, prompts and sums; nothing here knows about tasks."""

from promptcl.layers.heads import ClassMeans, GrowingLinear, RidgeHead
from promptcl.layers.prompts import PromptPool, cosine
from promptcl.layers.sums import Statistics, Sum, sums_of

__all__ = ["ClassMeans", "GrowingLinear", "PromptPool", "RidgeHead", "Statistics", "Sum", "cosine", "sums_of"]
