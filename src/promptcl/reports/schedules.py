"""Read the schedule of a stream that never says where a task ends. Imports no torch.

E micro-tasks, T tasks, K classes.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Array = npt.NDArray[np.float64]
Whole = Annotated[int, Field(ge=0, le=2**53)]
MOST_CELLS = 1_000_000  # of one figure


class _Piece(BaseModel):
    """Base of everything that is read of results.json."""

    model_config = ConfigDict(allow_inf_nan=False)  # keys that a later version adds are ignored


class Schedule(_Piece):
    """The schedule of a stream without task boundaries: when each class peaks, and what each micro-task drew."""

    steps: Annotated[int, Field(ge=0, le=10**9)]
    sigma: float = Field(ge=1e-6, le=1e12)
    peaks: list[Annotated[float, Field(ge=-1e12, le=1e12)]] = Field(min_length=1)
    expected_classes: list[Annotated[float, Field(ge=0, le=1e9)]]
    included: list[list[Whole]] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Schedule:
        if len(self.expected_classes) != len(self.included):
            raise ValueError("expected_classes and included differ in length")
        if max((k for row in self.included for k in row), default=0) >= len(self.peaks):
            raise ValueError("included names a class without a peak")
        if len(self.included) * len(self.peaks) > MOST_CELLS:
            raise ValueError(f"more than {MOST_CELLS:,} micro-tasks times classes")
        return self

    def drawn(self) -> Array:
        """Probability [micro-task, class] of those classes that were drawn; NaN for the others."""
        e_E1 = np.arange(len(self.included))[:, None]
        p_EK: Array = np.exp(-((e_E1 * self.steps - np.array(self.peaks)) ** 2) / (2 * self.sigma**2))
        drawn_EK: Array = np.full_like(p_EK, np.nan)
        for e, classes in enumerate(self.included):
            drawn_EK[e, classes] = p_EK[e, classes]
        return drawn_EK


class Mixture(_Piece):
    """How the images of each class are spread over tasks that run into one another."""

    images: list[list[Whole]] = Field(min_length=1)
    """Of each task, images of each class [T, K]."""
    task_of_class: list[Whole] = Field(min_length=1)
    """The task [K] that a class belongs to."""
    blurry: list[Whole]
    """The classes that have images in other tasks too."""

    @model_validator(mode="after")
    def _consistent(self) -> Mixture:
        classes = len(self.task_of_class)
        if {len(row) for row in self.images} != {classes}:
            raise ValueError("images and task_of_class differ in length")
        if max(self.task_of_class) >= len(self.images) or max(self.blurry, default=0) >= classes:
            raise ValueError("a task or a class is named that there is not")
        if len(self.images) * classes > MOST_CELLS:
            raise ValueError(f"more than {MOST_CELLS:,} tasks times classes")
        return self

    def shares(self) -> Array:
        """Share of the images of each class in each task [T, K]; columns are classes by their task, blurry ones last.

        NaN where there are none.
        """
        images_TK = np.array(self.images, dtype=np.float64)
        blurry = set(self.blurry)
        order = sorted(range(images_TK.shape[1]), key=lambda k: (k in blurry, self.task_of_class[k], k))
        shares_TK: Array = (images_TK / np.maximum(images_TK.sum(0), 1))[:, order]
        shares_TK[shares_TK == 0] = np.nan
        return shares_TK


def _kind(schedule: Any) -> str:
    return "mixture" if "task_of_class" in (schedule if isinstance(schedule, dict) else ()) else "gaussian"


AnySchedule = Annotated[Annotated[Schedule, Tag("gaussian")] | Annotated[Mixture, Tag("mixture")], Discriminator(_kind)]
