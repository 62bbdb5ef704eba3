"""What results say about the machine that computed them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from promptcl.runtime.device import WINS, bfloat16_feature, bfloat16_gain, pick_precision
from promptcl.runtime.provenance import versions


def test_results_say_what_computed_them() -> None:
    found = versions(torch.device("cpu"))
    assert found["threads"] == str(torch.get_num_threads())
    assert found["processor"]
    assert found["processor"] != "unknown"
    assert "gpu" not in found


def test_auto_computes_in_bfloat16_where_the_processor_is_faster_in_it() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or "avx2" not in flags.read_text():
        pytest.skip("this processor does not list its features as x86 does")
    cpu = torch.device("cpu")
    found = bfloat16_feature(cpu)
    assert (found is not None) == ("_bf16" in flags.read_text())
    faster = found == "amx_bf16" or (found is not None and bfloat16_gain(cpu) >= WINS)
    assert pick_precision("auto", cpu) == ("bf16" if faster else "fp32")
    assert (pick_precision("fp32", cpu), pick_precision("bf16", cpu)) == ("fp32", "bf16")
    told = versions(cpu)["bfloat16"]
    assert told.startswith(found or "none")
    assert told.endswith("slower than float32") == (found is not None and not faster)
    assert versions(cpu) == versions(cpu)


def test_what_bfloat16_is_worth_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = bfloat16_gain(torch.device("cpu"))
    assert 0.001 < first < 100  # emulated it is a fortieth, with matrix units it is eight times as fast
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    assert bfloat16_gain(torch.device("cpu")) == first
