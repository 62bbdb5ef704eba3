"""What was freed goes back to the system, even where something small stays above it."""

from __future__ import annotations

import ctypes

import pytest
from serving import resident

from promptcl.runtime import heap


@pytest.mark.skipif(heap._trim is None, reason="only glibc hands memory back when asked to")
def test_what_was_freed_is_handed_back() -> None:
    """By the C library itself, as tensors are: 100 MB in small pieces, of which the last one stays."""
    c = ctypes.CDLL(None)
    c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    pieces = [c.malloc(10_000) for _ in range(10_000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 10_000)
    for piece in pieces[:-1]:
        c.free(piece)
    before = resident()
    heap.hand_back()
    assert before - resident() > 80e6
    c.free(pieces[-1])
