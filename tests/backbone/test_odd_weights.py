"""Weights whose numbers are not there one by one, or are none, are refused by name; so are files that are no files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from promptcl.backbone import weights
from promptcl.backbone.vit import Backbone
from promptcl.errors import UserError

ODD: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda value: torch.full_like(value, float("nan")), "holds NaN or infinite numbers"),
    (lambda value: torch.full_like(value, float("-inf")), "holds NaN or infinite numbers"),
    (Tensor.to_sparse, "is sparse, expected a dense tensor"),
    (lambda value: torch.empty(value.shape, device="meta"), "is on the meta device"),
    (lambda value: value.to(torch.complex64), "is complex"),
]


@pytest.mark.parametrize(("change", "reason"), ODD)
def test_odd_tensors(change: Callable[[Tensor], Tensor], reason: str, backbone: Backbone, tmp_path: Path) -> None:
    state = backbone.vit.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    state["norm.weight"] = change(state["norm.weight"])
    torch.save(state, tmp_path / "vit.pth")
    try:
        with pytest.raises(UserError, match=f"vit.pth: norm.weight {reason}"):
            weights.load(backbone.vit, tmp_path / "vit.pth", "test_vit")
    finally:
        backbone.vit.load_state_dict(before)


def test_odd_files(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(backbone.vit.state_dict(), file)
    assert weights.locate(str(file), "test_vit", None) == file
    with file.open("r+b") as opened:
        opened.truncate(2**36)
    with pytest.raises(UserError, match=r"cannot be read \(it is mostly holes"):
        weights.locate(str(file), "test_vit", None)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="there is no file"):
        weights.locate(str(file), "test_vit", None)
    with pytest.raises(UserError, match="there is no file ~nosuchuser"):
        weights.locate("~nosuchuser/vit.pth", "test_vit", None)
