"""Write large tensors to a safetensors file and read them back, without a second copy of them in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from promptcl.errors import UserError

_BLOCK = 2**20
_LARGEST_HEADER = 100_000_000  # bytes; the library reads no more


def write_to(file: BinaryIO, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write `tensors` into the open file; returns the `sha256` and the number of `bytes` of what was written."""
    sha256, size = hashlib.sha256(), 0
    for piece in pieces(tensors):
        file.write(piece)
        sha256.update(piece)
        size += len(piece)
    return {"sha256": sha256.hexdigest(), "bytes": size}


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, piece by piece: its header, then the memory of one tensor after another.

    safetensors.torch.save_file is not used. It writes to a temporary file of its own, under a random name that stays
    behind when the process is killed; it hides why a write failed; it wants all tensors on the CPU at once, and none
    that share memory. The library only says in which order tensors come and what their types are called, in a small
    file of one number for each tensor. The bytes are those of safetensors.torch.save: names of files depend on them.
    """
    small = safetensors.torch.save({name: torch.zeros(1, dtype=tensor.dtype) for name, tensor in tensors.items()})
    header = json.loads(small[8 : 8 + int.from_bytes(small[:8], "little")])
    end = 0
    for name, entry in header.items():
        begin, end = end, end + tensors[name].nbytes
        entry.update(shape=list(tensors[name].shape), data_offsets=[begin, end])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LARGEST_HEADER:
        raise UserError(
            f"{len(tensors):,} tensors are more than a safetensors file can name; keep fewer images (memory.per_class)"
        )
    yield len(text).to_bytes(8, "little") + text
    for name in header:  # one on a GPU, or not contiguous, is copied when its turn comes
        yield tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size, hexadecimal."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
    return sha256.hexdigest()


def load(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, each into memory of its own.

    Raises FileNotFoundError, and errors of several types where the file is not of that format.
    """
    # Not mapped into memory, as load_file does: this process would be killed if the file were shortened later.
    with safetensors.safe_open(path, "pt", backend="pread") as file:
        return dict(file.get_tensors())
