"""What every group of settings is made of. Imports no torch."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Unread(NamedTuple):
    """Why a setting is not read."""

    because: str
    """The other setting that makes it so: `augment=none`."""
    instead: str = ""
    """What to write for it to be read: `augment=crop`."""


class Section(BaseModel):
    """Base of every group of settings: unknown keys are refused, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic would read `train.epochs=true` as 1.
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & set(get_args(annotation) or (annotation,)):
            raise PydanticCustomError("bool_for_number", "a number was expected")
        return value

    def unread(self) -> dict[str, Unread]:
        """Settings of this section that other ones leave unread, by name, or by `section.` for all of a section."""
        return {}
