"""Building blocks of methods: heads, prompts and sums; nothing here knows about tasks."""

from promptcl.layers.heads import ClassMeans, GrowingCosine, GrowingLinear
from promptcl.layers.prompts import PromptPool, cosine
from promptcl.layers.ridge import Penalty, RidgeHead
from promptcl.layers.rows import Rows
from promptcl.layers.sums import Statistics, Sum, SymmetricSum, sums_of

__all__ = [
    "ClassMeans",
    "GrowingCosine",
    "GrowingLinear",
    "Penalty",
    "PromptPool",
    "RidgeHead",
    "Rows",
    "Statistics",
    "Sum",
    "SymmetricSum",
    "cosine",
    "sums_of",
]
