"""Times of `promptcl serve`: cold start, warm answers, many at once beside one at a time; and kills while it learns.

Command: python benchmarks/serve.py [--kills 20]   (writes benchmarks/results/serve.json and the table in docs/serve.md)
The server is a process of its own with the recipe `grow-demo`, asked over HTTP by this one about digits of MNIST, one
image a request. Answers counted while it learns come from the time between the start of a job and its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from server import Part, Server, Victim

from promptcl import store as stores
from promptcl.config.schema import DataConfig
from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config
from promptcl.runtime.provenance import git_commit, versions

ROOT = Path(__file__).parents[1]
ALONE, CROWD, ROUNDS, TASKS = 300, 200, 5, 24


def encoded(images: ImageSet, folder: Path) -> list[tuple[str, bytes]]:
    """Class and PNG of each image."""
    found = []
    for i, label in enumerate(images.labels):
        file = folder / f"{i}.png"
        Image.fromarray(images.image(i)[0].numpy()).save(file)
        found.append((images.classes[label], file.read_bytes()))
    return found


def parts_of(images: list[tuple[str, bytes]]) -> list[Part]:
    """The form that has images learned."""
    parts: list[Part] = []
    for i, (name, content) in enumerate(images):
        parts += [("class", "", name.encode()), ("x", f"{i}.png", content)]
    return parts


def spread(seconds: list[float], wall: float) -> dict[str, float]:
    """What is told of some answers: how many, how fast."""
    ordered = sorted(seconds)
    return {
        "answers": len(ordered),
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "answers_per_second": len(ordered) / wall,
    }


def timed(ask: Callable[[int], Any], count: int, at_once: int) -> dict[str, float]:
    """Ask so often, so many at once."""

    def one(i: int) -> float:
        start = time.perf_counter()
        ask(i)
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        seconds = list(pool.map(one, range(count)))
    return spread(seconds, time.perf_counter() - start)


def load(server: Server, images: list[tuple[str, bytes]], fresh: list[tuple[str, bytes]]) -> dict[str, Any]:
    """One at a time and many at once, without and with something being learned; memory before and after."""

    def ask(i: int) -> str:
        version: str = server.send("POST", "/v1/predict", images[i % len(images)][1])["version"]
        return version

    for i in range(20):
        ask(i)
    results: dict[str, Any] = {"alone": timed(ask, ALONE, 1), "crowd": timed(ask, CROWD * ROUNDS, CROWD)}
    memory, seen = [server.resident()], {server.get("/v1/learner")["version"]}
    learned: list[dict[str, Any]] = []

    def learn() -> None:
        for task in range(TASKS):
            learned.append(server.finish(server.learn(parts_of(fresh[task::TASKS]))))
            memory.append(server.resident())

    thread, answered, seconds = threading.Thread(target=learn), [], []

    def counted(i: int) -> None:
        start = time.perf_counter()
        answered.append(ask(i))
        seconds.append(time.perf_counter() - start)

    start = time.perf_counter()
    thread.start()
    with ThreadPoolExecutor(CROWD) as pool:
        while thread.is_alive():
            list(pool.map(counted, range(CROWD)))
    thread.join()
    seen |= {result["version"] for result in learned}
    results["crowd_while_learning"] = spread(seconds, time.perf_counter() - start)
    results["images_learned_meanwhile"] = sum(result["learned"] for result in learned)
    results["answers_of_no_whole_learner"] = sum(version not in seen for version in answered)
    results["resident_bytes_before_and_after_each_task"] = memory
    return results


def kills(first: Path, fresh: list[tuple[str, bytes]], count: int) -> dict[str, int]:
    """Kill a server while it learns, so often; the store has to be the one of before or the one of after."""
    rng, found, old = random.Random(0), {"old": 0, "new": 0, "lost": 0}, stores.load(first)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        shutil.copytree(first, whole)
        server = Victim(whole)
        server.finish(server.learn(parts_of(fresh)))
        server.kill()
        new = stores.load(whole)
        for i in range(count):
            place = Path(folder) / str(i)
            shutil.copytree(first, place)
            server = Victim(place)
            job, moment = server.learn(parts_of(fresh)), rng.uniform(0, 1.3)
            while job["state"] in ("waiting", "running") and job["doing"] != "saving" and job["progress"] < moment:
                job = server.get(f"/v1/jobs/{job['id']}")
            time.sleep(max(0.0, moment - 1))  # from 1 on, so long after it began to save
            server.kill()
            now = stores.load(place)
            same = [name for name, one in (("old", old), ("new", new)) if equal(one, now)]
            found[same[0] if same else "lost"] += 1
            print(f"kill {i + 1}: {same[0] if same else 'LOST'}", flush=True)
    return {"kills": count, **found}


def equal(one: stores.Saved, other: stores.Saved) -> bool:
    """Whether two stores hold the same numbers, bit for bit."""
    keys = one.state.keys()
    return keys == other.state.keys() and all(one.state[key].equal(other.state[key]) for key in keys)


def main() -> int:
    """Measure, write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no threads may run when this process forks
    split = load_split(DataConfig(name="mnist5k", train_per_class=60, test_per_class=20))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        learned, tests = encoded(split.train, folder), encoded(split.test, folder)
        learner = Learner(load_config("grow-demo"))
        half = [i for i in range(len(split.train)) if i % 60 < 30]
        learner.learn(split.train.select(half))
        learner.save(folder / "store")
        fresh = [one for i, one in enumerate(learned) if i % 60 >= 30]
        shutil.copytree(folder / "store", folder / "served")
        server = Server(folder / "served")
        results: dict[str, Any] = {"cold_start_seconds": server.seconds, **load(server, tests, fresh)}
        server.end()
        print(json.dumps(results, indent=1), flush=True)
        results["kills"] = kills(folder / "store", fresh[:100], arguments.kills)
    results |= {"at_once": CROWD, "cpus": os.cpu_count(), "load_average": os.getloadavg()[0]}
    results |= {"versions": versions(), "git_commit": git_commit()}
    (ROOT / "benchmarks" / "results" / "serve.json").write_text(json.dumps(results, indent=1) + "\n")
    write_table(results)
    return int(results["kills"]["lost"] > 0 or results["answers_of_no_whole_learner"] > 0)


def table(results: dict[str, Any]) -> str:
    """The rows of docs/serve.md."""
    rows = ["| | p50 | p99 | answers a second |", "|:--|--:|--:|--:|"]
    for key, name in (
        ("alone", "one at a time"),
        ("crowd", f"{results['at_once']} at once"),
        ("crowd_while_learning", f"{results['at_once']} at once, while it learns"),
    ):
        one = results[key]
        rows.append(f"| {name} | {one['p50_ms']:.0f} ms | {one['p99_ms']:.0f} ms | {one['answers_per_second']:.0f} |")
    killed = results["kills"]
    memory = [round(bytes_ / 1e6) for bytes_ in results["resident_bytes_before_and_after_each_task"]]
    first, second = memory[1 : len(memory) // 2 + 1], memory[len(memory) // 2 + 1 :]
    rows += [
        "",
        f"Cold start {results['cold_start_seconds']:.1f} s, from the command to the first answer. While "
        f"{results['images_learned_meanwhile']} images were learned in {len(memory) - 1} tasks, "
        f"{results['crowd_while_learning']['answers']:,} answers were given, "
        f"{results['answers_of_no_whole_learner']} of them by a learner that was not whole. "
        f"The server took {memory[0]} MB before, {min(first)} to {max(first)} MB after each of the first {len(first)} "
        f"tasks, {min(second)} to {max(second)} MB after each of the last {len(second)}. "
        f"{killed['kills']} servers were killed while they learned: "
        f"{killed['old']} stores were the old one, {killed['new']} the new one, {killed['lost']} anything else. "
        f"The load average of the machine was {results['load_average']:.1f}, on {results['cpus']} cores.",
    ]
    return "\n".join(rows)


def write_table(results: dict[str, Any]) -> None:
    """Put the table into docs/serve.md."""
    page = ROOT / "docs" / "serve.md"
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition("<!-- serve -->\n")
    _, end, tail = rest.partition("<!-- end -->")
    page.write_text(f"{head}{begin}{table(results)}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
