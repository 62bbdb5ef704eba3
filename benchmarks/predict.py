"""Time of `promptcl predict` for one image, cold and warm, whose share it is, and memory over 1,000 calls.

Command: python benchmarks/predict.py [STORE IMAGE]   (writes benchmarks/results/predict.json)
Without a store a new one learns the ten digits of MNIST with the recipe `grow-demo`. Cold is a new process, start to
end; `within` splits the CPU time of one into Python's start with `import torch, timm`, and ours.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from promptcl.config.schema import DataConfig
from promptcl.data.splits import load_split
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config
from promptcl.runtime.provenance import git_commit, versions

COLD, WARM = 3, 1000


def cold(*words: str) -> dict[str, float]:
    """Median seconds of new processes `python WORDS`, after one that fills the disk cache: on the clock, and of CPU."""
    wall, cpu = [], []
    for _ in range(COLD + 1):
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        wall.append(time.perf_counter() - start)
        cpu.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return {"seconds": statistics.median(wall[1:]), "cpu_seconds": statistics.median(cpu[1:])}


_SPLIT = """
import sys, time
import torch, timm
imported = time.process_time()
from promptcl.cli.main import app
app(sys.argv[1:], standalone_mode=False)
print(imported, time.process_time() - imported, file=sys.stderr)
"""


def shares(*words: str) -> dict[str, float]:
    """CPU seconds inside one new process: until torch and timm are imported, and all that comes after."""
    found = []
    for _ in range(COLD):
        done = subprocess.run([sys.executable, "-c", _SPLIT, *words], check=True, capture_output=True, text=True)
        found.append([float(word) for word in done.stderr.split()[-2:]])
    theirs, ours = (statistics.median(column) for column in zip(*found, strict=True))
    return {"import_cpu_seconds": theirs, "ours_cpu_seconds": ours, "ours_share": ours / (theirs + ours)}


def resident() -> int:
    """Bytes of memory of this process that are in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def warm(store: Path, image: Path) -> dict[str, Any]:
    """A thousand sequential calls: seconds of each, memory after the first hundred and at the end."""
    learner, seconds, memory = Learner.load(store), [], []
    cpu = time.process_time()
    for i in range(WARM):
        start = time.perf_counter()
        learner.predict(image)
        seconds.append(time.perf_counter() - start)
        if i % 100 == 99:
            memory.append(resident())
    return {
        "calls": WARM,
        "median_seconds": statistics.median(seconds),
        "mean_cpu_seconds": (time.process_time() - cpu) / WARM,
        "resident_bytes_every_100_calls": memory,
        "growth_bytes_from_call_100": memory[-1] - memory[0],
    }


def digits(folder: Path) -> tuple[Path, Path]:
    """A store that knows the digits, and an image of a seven."""
    split = load_split(DataConfig(name="mnist5k", train_per_class=20, test_per_class=1))
    learner = Learner(load_config("grow-demo"))
    learner.learn(split.train)
    learner.save(folder / "store")
    Image.fromarray(split.test.image(7)[0].numpy()).save(folder / "seven.png")
    return folder / "store", folder / "seven.png"


def main(arguments: list[str]) -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as temporary:
        store, image = map(Path, arguments) if arguments else digits(Path(temporary))
        results = {
            "cold": cold("-m", "promptcl", "predict", str(store), str(image)),
            "import": cold("-c", "import torch, timm"),
            "within": shares("predict", str(store), str(image)),
            "help": cold("-m", "promptcl", "--help"),
            "warm": warm(store, image),
            "backbone": Learner.load(store).backbone.describe(),
            "load_average": os.getloadavg()[0],
            "cpus": os.cpu_count(),
            "versions": versions(),
            "git_commit": git_commit(),
        }
    out = Path(__file__).parent / "results" / "predict.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
