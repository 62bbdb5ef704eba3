"""The plain engine with one line more: bfloat16 autocast. `promptcl bench RECIPE --engine benchmarks/plain_bf16.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import plain


class Engine(plain.Engine):
    """As plain.Engine, its two passes in bfloat16 where PyTorch's autocast does them so."""

    def _features(self, images_BCHW: Tensor, prompts_BPD: Tensor | None = None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return super()._features(images_BCHW, prompts_BPD).float()
