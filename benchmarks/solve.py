"""Would an update of the last solution of a ridge regression be cheaper than a new one? Seconds of each way.

Command: python benchmarks/solve.py     (writes benchmarks/results/solve.json)
A task of 30 images joins many; float64, features are drawn. Seconds are those that the process computed.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from promptcl.layers import RidgeHead

RESULTS = Path(__file__).resolve().parent / "results" / "solve.json"
NEW, PENALTY, ROUNDS = 30, 10.0, 3


def ways(width: int, classes: int) -> dict[str, Callable[[], object]]:
    """The whole solution of the library, and the ways of one with a penalty that is given and never changes."""
    generator = torch.Generator().manual_seed(0)
    head = RidgeHead(width)
    head.grow(classes)
    old_ND = torch.randn(max(3000, 3 * classes), width, generator=generator)
    head.add(old_ND, torch.arange(len(old_ND)) % classes)
    gram_DD = torch.tril(head.scatter_DD.value)
    gram_DD = gram_DD + torch.tril(gram_DD, -1).T + PENALTY * torch.eye(width, dtype=torch.float64)
    target_DK = head.sum_KD.value.T.contiguous()
    new_ND = torch.randn(NEW, width, generator=generator).double()
    label_NK = torch.nn.functional.one_hot(torch.arange(NEW) % classes, classes).double()
    inverse_DD = torch.cholesky_inverse(torch.linalg.cholesky(gram_DD))
    weight_DK = inverse_DD @ target_DK

    def woodbury() -> None:
        along_DN = inverse_DD @ new_ND.T
        inner_NN = torch.eye(NEW, dtype=torch.float64) + new_ND @ along_DN
        inverse_DD.addmm(along_DN, torch.linalg.solve(inner_NN, along_DN.T), alpha=-1)
        _ = weight_DK + along_DN @ torch.linalg.solve(inner_NN, label_NK - new_ND @ weight_DK)

    return {
        "as it is": lambda: head.solve(balance=True),
        "eigenvectors alone": lambda: torch.linalg.eigh(gram_DD),
        "Cholesky": lambda: torch.cholesky_solve(target_DK, torch.linalg.cholesky(gram_DD)),
        "update of the inverse": woodbury,
    }


def main() -> None:
    """Measure all ways in turn and write the medians."""
    rows = []
    for width, classes in ((192, 100), (192, 1000), (1300, 100), (1300, 1000)):
        jobs = ways(width, classes)
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(ROUNDS + 1):
            for name, job in jobs.items():
                start = time.process_time()
                job()
                if number:
                    seconds[name].append(time.process_time() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        rows.append({"width": width, "classes": classes, "seconds": medians})
        print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
