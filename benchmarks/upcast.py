"""The command `promptcl` for processors without bfloat16 instructions: `python benchmarks/upcast.py train RECIPE ...`.

PyTorch computes products of bfloat16 matrices on such a processor several times slower than those of float32. Here
their operands become float32, are multiplied, and the result is rounded to bfloat16: what a bfloat16 unit does, which
multiplies exactly and adds up in float32. Attention alone is a little more exact, since its weights are not rounded
before they meet the values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from promptcl.cli.main import main

ATEN = torch.ops.aten
PRODUCTS = {
    ATEN.mm.default,
    ATEN.addmm.default,
    ATEN.bmm.default,
    ATEN.baddbmm.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class Upcast(TorchDispatchMode):
    """Computes the products of bfloat16 tensors in float32 and rounds what comes out."""

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, its bfloat16 operands in float32 if it is a product."""
        kwargs = kwargs or {}
        if operation not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return operation(*args, **kwargs)
        results = operation(*(wide(value) for value in args), **{name: wide(value) for name, value in kwargs.items()})
        if isinstance(results, Tensor):
            return results.bfloat16()
        # The log of the sum of attention's exponents, one number a row, stays in float32: so does PyTorch's own.
        return tuple(value.bfloat16() if value.dim() == 4 else value for value in results)


def wide(value: Any) -> Any:
    """A bfloat16 tensor in float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


if __name__ == "__main__":
    with Upcast():  # type: ignore[no-untyped-call]  # PyTorch gives its constructor no types
        main()
