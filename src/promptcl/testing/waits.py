"""Where a GPU would be waited for: whatever needs the value or the number of something that was just computed."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_HERE, _PACKAGE = Path(__file__), str(Path(__file__).parents[1])
_OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
_OPERATORS |= {"unique_consecutive", "bincount", "_linalg_check_errors"}
_METHODS = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.cpu: "cpu"}


class Waits:
    """Counts, on any device, what a GPU would have to be waited for while this context is open.

    `found` has for each operation, with the line of the package that asks for it, how often it was called. Tensors
    that are on the CPU by design are counted too: what is drawn from a generator, say, or the steps of an optimiser.
    """

    def __init__(self) -> None:
        """Begin at nothing."""
        self.found: Counter[str] = Counter()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Waits:
        """Begin to count."""
        modes: tuple[Any, ...] = (_Calls(self), _Operators(self))
        for mode in modes:
            self._open.enter_context(mode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count no longer."""
        self._open.close()

    def note(self, name: str) -> None:
        """Count `name`, with the innermost line of the package that led to it."""
        frame, where = sys._getframe(1), "elsewhere"
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file != _HERE and str(file).startswith(_PACKAGE):
                where = f"{file.relative_to(_PACKAGE)}:{frame.f_lineno}"
                break
            frame = frame.f_back  # type: ignore[assignment]
        self.found[f"{name} in {where}"] += 1


class _Calls(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        if function in _METHODS:
            self.waits.note(_METHODS[function])
        return function(*arguments, **(named or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.waits = waits

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in _OPERATORS:
            self.waits.note(name)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            chosen = [one for one in arguments[1] if isinstance(one, Tensor)]
            if any(one.dtype in (torch.bool, torch.uint8) for one in chosen):
                self.waits.note("a boolean index")
        return function(*arguments, **(named or {}))
