"""Sums over images that several processes share, and statistics that a method reports by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from promptcl.runtime.device import widest_float


class Sum(nn.Module):
    """A tensor to which each image only adds: the sum behind a class mean, a Gram matrix, a count.

    Where several processes learn together, each adds its own images; what they have added is exchanged when the loop
    over `task.batches()` ends and at the end of a stage. Until then `value` lacks what the others have added.
    """

    value: Tensor

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float64, persistent: bool = True) -> None:
        """Start with zeros of `shape`; without `persistent` the sum is not saved with the method."""
        super().__init__()
        self.register_buffer("value", torch.zeros(shape, dtype=dtype), persistent)

    def add(self, tensor: Tensor) -> None:
        """Add `tensor`, of the shape of the sum."""
        self.value += tensor.to(self.value.dtype)

    def add_rows(self, index_B: Tensor, rows_BX: Tensor) -> None:
        """Add each row of `rows_BX` [B, ...] to the row of the sum that `index_B` [B] names."""
        self.value.index_add_(0, index_B, rows_BX.to(self.value.dtype))

    def grow(self, rows: int) -> None:
        """Append `rows` rows of zeros."""
        self.value = torch.cat([self.value, self.value.new_zeros(rows, *self.value.shape[1:])])


class SymmetricSum(Sum):
    """The sum of x x^T over rows x: a matrix [D, D], of which the lower triangle [D (D + 1) / 2] is saved.

    Read only that triangle: the other one may differ from it in the last bits until it was saved.
    """

    def __init__(self, width: int) -> None:
        """Start with zeros."""
        super().__init__(width, width)

    def add_products(self, rows_ND: Tensor) -> None:
        """Add x x^T of each row x of `rows_ND` [N, D]."""
        self.value.addmm_(rows_ND.T, rows_ND)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}value"] = packed(self.value)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        self.value.copy_(unpacked(state_dict[f"{prefix}value"], len(self.value)))


def packed(matrix_DD: Tensor) -> Tensor:
    """The lower triangle [D (D + 1) / 2] of a symmetric matrix."""
    row, column = torch.tril_indices(*matrix_DD.shape, device=matrix_DD.device)
    return matrix_DD[row, column]


def unpacked(triangle_P: Tensor, width: int) -> Tensor:
    """The symmetric matrix [D, D] of a lower triangle [D (D + 1) / 2]."""
    row, column = torch.tril_indices(width, width, device=triangle_P.device)
    matrix_DD = triangle_P.new_zeros(width, width)
    matrix_DD[row, column] = matrix_DD[column, row] = triangle_P
    return matrix_DD


def sums_of(module: nn.Module) -> list[Tensor]:
    """The values of every Sum inside `module`, in a fixed order."""
    return [part.value for part in module.modules() if isinstance(part, Sum)]


class Statistics:
    """Counts and means that a method reports by name while it runs, and that the learner collects.

    They are not saved with the method. The names are the method's own: the report draws `prompts` (how often each
    prompt was chosen) and `cosine` (how well the chosen keys fit).
    """

    def __init__(self) -> None:
        """Start without counts and means."""
        self.counts: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}

    def count(self, name: str, index: Tensor, size: int) -> None:
        """Count how often each of the ids 0 .. `size` - 1 is in `index` (any shape); does nothing in an export."""
        if torch.compiler.is_compiling():
            return
        old = self.counts.get(name)
        if old is None:
            old = index.new_zeros(0)
        if len(old) < size:
            old = torch.cat([old, old.new_zeros(size - len(old))])
        self.counts[name] = old.scatter_add(0, index.flatten(), torch.ones_like(index).flatten())

    def mean(self, name: str, values: Tensor) -> None:
        """Include all `values` (any shape) in the mean called `name`; does nothing in an export."""
        if torch.compiler.is_compiling():
            return
        values = values.detach().to(widest_float(values.device))
        pair = torch.stack([values.sum(), torch.full_like(values.sum(), values.numel())])
        self.means[name] = self.means[name] + pair if name in self.means else pair

    def tensors(self) -> dict[str, Tensor]:
        """All counts and means as tensors, by names that `restore` understands."""
        named = {f"count.{name}": value for name, value in self.counts.items()}
        return {**named, **{f"mean.{name}": value for name, value in self.means.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all counts and means by those that a call of `tensors()` returned."""
        self.clear()
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            (self.counts if kind == "count" else self.means)[name] = value

    def fill(self, shapes: Mapping[str, Sequence[int]], device: torch.device) -> None:
        """Extend counts and means with zeros to `shapes` (named as in `tensors`), the same in all processes."""
        have = self.tensors()
        for name, shape in sorted(shapes.items()):
            kind = torch.long if name.startswith("count.") else widest_float(device)
            whole = torch.zeros(*shape, dtype=have[name].dtype if name in have else kind, device=device)
            if name in have:
                whole[: len(have[name])] = have[name]
            have[name] = whole
        self.restore({name: have[name] for name in sorted(have)})

    def clear(self) -> None:
        """Remove all counts and means."""
        self.counts, self.means = {}, {}

    def take(self) -> dict[str, list[int] | float]:
        """Return counts (lists) and means (numbers) by name, and remove them here."""
        found: dict[str, list[int] | float] = {name: count.tolist() for name, count in self.counts.items()}
        for name, (total, number) in ((name, pair.tolist()) for name, pair in self.means.items()):
            found[name] = total / number if number else 0.0
        self.clear()
        return found

    def __iter__(self) -> Iterator[str]:
        """Names of everything that was counted."""
        return iter([*self.counts, *self.means])
