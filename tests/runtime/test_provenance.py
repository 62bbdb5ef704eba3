"""What results say about the machine that computed them."""

from __future__ import annotations

import torch

from promptcl.runtime.provenance import versions


def test_results_say_what_computed_them() -> None:
    found = versions(torch.device("cpu"))
    assert found["threads"] == str(torch.get_num_threads())
    assert found["processor"]
    assert found["processor"] != "unknown"
    assert "gpu" not in found
