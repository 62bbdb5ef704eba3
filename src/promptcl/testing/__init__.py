"""`check_method` checks that a method keeps the contract, in the tests of this package and in yours.

The checks learn pairs of real digits, most of them on a tiny ViT of random values and some on the small ViT inside the
package; they need `pip install 'promptcl[demo]'`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from promptcl.methods._base import Method
from promptcl.testing.bench import Bench, named
from promptcl.testing.checks import CHECKS

__all__ = ["check_method"]


def check_method(
    method: str | type[Method], options: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Check that `method` (a name as of `method.name`, or a class) keeps the contract with these `options`.

    settings: other sections by name, `{"memory": {"per_class": 2, "store": True}}` for a method that needs a memory.
    Returns what was checked: name -> `passed`, or why it was refused where a refusal is allowed.
    Raises AssertionError that says what is broken.
    """
    name = method if isinstance(method, str) else named(method)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, dict(options or {}), Path(folder), settings)
        return {_name(check): _checked(check, bench) for check in CHECKS}


def _name(check: Callable[[Bench], str]) -> str:
    return check.__name__.removeprefix("_").replace("_", " ")


def _checked(check: Callable[[Bench], str], bench: Bench) -> str:
    try:
        return check(bench)
    except AssertionError:
        raise
    except Exception as error:  # whatever the method raises where it should work
        raise AssertionError(f"{_name(check)}: {type(error).__name__}: {error}") from error
