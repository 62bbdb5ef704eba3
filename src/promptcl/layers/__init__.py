"""Building blocks of methods: heads, prompts, adapters and sums; nothing here reads images or runs stages."""

from promptcl.layers.counting import StepCount, falling, half_cosine
from promptcl.layers.gaussians import ClassGaussians, Covariance
from promptcl.layers.heads import (
    ClassMeans,
    CosineHead,
    GrowingCosine,
    GrowingLinear,
    ResidualHead,
    TaskCosine,
    TaskLinear,
)
from promptcl.layers.prompts import PromptPool, cosine
from promptcl.layers.ridge import Penalty, RidgeHead
from promptcl.layers.rows import Rows
from promptcl.layers.sums import Statistics, Sum, SymmetricSum, sums_of

__all__ = [
    "ClassGaussians",
    "ClassMeans",
    "CosineHead",
    "Covariance",
    "GrowingCosine",
    "GrowingLinear",
    "Penalty",
    "PromptPool",
    "ResidualHead",
    "RidgeHead",
    "Rows",
    "Statistics",
    "StepCount",
    "Sum",
    "SymmetricSum",
    "TaskCosine",
    "TaskLinear",
    "cosine",
    "falling",
    "half_cosine",
    "sums_of",
]
