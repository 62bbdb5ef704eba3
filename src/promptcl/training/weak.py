"""A function of an object that the object may hold itself, and is freed all the same as soon as nobody else needs it.

Held as a plain bound method it would be a circle, which Python looks for so rarely that old learners would pile up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Weak(Generic[Result]):
    """A bound method that does not keep its object; copied together with the object it belongs to the copy."""

    def __init__(self, method: Callable[..., Result]) -> None:
        """method: one that is bound to an object."""
        assert isinstance(method, MethodType)
        self._method: weakref.WeakMethod[Callable[..., Result]] = weakref.WeakMethod(method)

    def __call__(self, *arguments: Any) -> Result:
        """Call the method. Raises ReferenceError where its object is gone."""
        if (method := self._method()) is None:
            raise ReferenceError("the object of this method is gone; keep it as long as what it made is used")
        return method(*arguments)

    def __reduce__(self) -> tuple[type[Weak[Result]], tuple[Callable[..., Result] | None]]:
        """For copies: the method of the copy."""
        return Weak, (self._method(),)
