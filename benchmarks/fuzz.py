"""Feed damaged and random files to every reader: only UserError may come out, in bounded time and memory.

Command: python benchmarks/fuzz.py [--inputs N] [--seed S]   (writes benchmarks/results/fuzz.json)
Each input is a real file of its kind with one to eight mutations (or, one time in ten, random bytes). A reader that
raises anything else, takes longer than ten seconds or needs more memory than the limit fails; the input is kept beside
the results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz_targets import Target, targets

from promptcl.errors import UserError
from promptcl.runtime.provenance import git_commit, versions

SECONDS = 10
MEMORY = 1 << 30  # bytes that reading may add to the process


class Hang(BaseException):
    """An input took too long; not an Exception, so that no reader can swallow it."""


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with one to eight changes, or random bytes."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(600))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 8, 64])
        kind = rng.randrange(8)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * rng.choice([1, 2, 50])
        elif kind == 4:
            number = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32)])
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif kind == 5 and rng.random() < 0.2:
            del data[at:]
        elif kind == 6:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        elif kind == 7:
            data[at:at] = rng.choice(
                [b"[" * 3000, b"9" * 5000, b"\0" * 64, b"../", b"*", b"&a ", b"!!python/name:os", b"\xff"]
            )
    return bytes(data)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Raise MemoryError in a reader that asks for too much."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(target: Target, data: bytes, folder: Path) -> str:
    """`read`, `refused`, or what went wrong."""

    def late(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        target.read(data, folder)
        return "read"
    except UserError as error:
        return "refused" if str(error).strip() else "UserError without a message"
    except Hang:
        return f"longer than {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(name: str, target: Target, inputs: int, seed: int, keep: Path) -> dict[str, Any]:
    """Counts for one reader; failing inputs are kept in the folder `keep`."""
    rng, start = random.Random(f"{seed}/{name}"), time.perf_counter()
    counts, failures, slowest = {"read": 0, "refused": 0}, [], 0.0
    with tempfile.TemporaryDirectory() as folder, limits():
        attempt(target, target.seeds[0], Path(folder))  # imports are not what is timed
        for i in range(inputs):
            data, began = mutated(rng, target.seeds), time.perf_counter()
            outcome = attempt(target, data, Path(folder))
            slowest = max(slowest, time.perf_counter() - began)
            if outcome in counts:
                counts[outcome] += 1
            else:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{i}".replace("=", "-")).write_bytes(data)
                failures.append(f"{i}: {outcome[:200]}")
    seconds = time.perf_counter() - start
    return {"inputs": inputs, **counts, "failures": failures, "seconds": seconds, "slowest_seconds": slowest}


def main() -> int:
    """Run every reader and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's remarks on damaged files
    found = {}
    for name, target in targets().items():
        if arguments.only in (None, name):
            found[name] = run(
                name, target, arguments.inputs, arguments.seed, Path(tempfile.gettempdir()) / "fuzz-failures"
            )
            print(
                name,
                {key: value for key, value in found[name].items() if key != "failures"},
                *found[name]["failures"][:5],
                sep="\n  ",
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total = {key: sum(counts[key] for counts in found.values()) for key in ("inputs", "read", "refused")}
    failed = sum(len(counts["failures"]) for counts in found.values())
    results = {
        "total": {**total, "failures": failed},
        "readers": found,
        "peak_memory_bytes": peak,
        "seed": arguments.seed,
    }
    results |= {"versions": versions(), "git_commit": git_commit()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(results["total"])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
