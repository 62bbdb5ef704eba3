"""What results say about the machine that computed them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from promptcl.runtime.device import fast_bfloat16, pick_precision
from promptcl.runtime.provenance import versions


def test_results_say_what_computed_them() -> None:
    found = versions(torch.device("cpu"))
    assert found["threads"] == str(torch.get_num_threads())
    assert found["processor"]
    assert found["processor"] != "unknown"
    assert "gpu" not in found


def test_auto_computes_in_bfloat16_wherever_the_processor_says_that_it_can() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or "avx2" not in flags.read_text():
        pytest.skip("this processor does not list its features as x86 does")
    found, cpu = fast_bfloat16(torch.device("cpu")), torch.device("cpu")
    assert (found is not None) == ("_bf16" in flags.read_text())
    assert pick_precision("auto", cpu) == ("bf16" if found else "fp32")
    assert (pick_precision("fp32", cpu), pick_precision("bf16", cpu)) == ("fp32", "bf16")
    assert versions(cpu)["bfloat16"] == (found or "none")
