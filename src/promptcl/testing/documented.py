"""Which options of a method say what they do: the docstring in the line under each."""

from __future__ import annotations

import ast
import inspect
import textwrap

from promptcl.config import Section


def undocumented(options: type[Section]) -> list[str]:
    """Names of options that have no docstring, neither here nor where they are inherited from."""
    said: set[str] = set()
    for kind in options.__mro__:
        if issubclass(kind, Section) and kind is not Section:
            said |= _said(kind)
    return [name for name in options.model_fields if name not in said]


def _said(kind: type[Section]) -> set[str]:
    """Names that have a docstring in the body of one class."""
    made = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(made, ast.ClassDef)
    said = set()
    for line, after in zip(made.body, made.body[1:], strict=False):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(line, ast.AnnAssign) and isinstance(text, str) and text.strip():
            said.add(ast.unparse(line.target))
    return said
