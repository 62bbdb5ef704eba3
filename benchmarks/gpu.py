"""All that is to be known of one GPU in under ten minutes: speed, share of its peak, waits, a whole run.

Command: python benchmarks/gpu.py     (writes benchmarks/results/gpu.json as it goes)
         python benchmarks/gpu.py --device cpu --model test_vit --quick     (the same, small, where there is none)
Weights are random and images are noise: times and memory mean something, accuracies would not and are not written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from promptcl.backbone import Backbone
from promptcl.config import Config
from promptcl.data import ImageSet
from promptcl.experiments.progress import QuietUi
from promptcl.experiments.run import run
from promptcl.experiments.speed import circumstances
from promptcl.experiments.step import matmul_gflops
from promptcl.learner import Learner
from promptcl.recipes.load import load_config
from promptcl.runtime import disk

ROOT = Path(__file__).resolve().parents[1]
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")
"""What the profiler calls it when the processor waits for a GPU."""
COMPILERS: dict[str, Any] = {
    "eager": None,
    "compiled": ({"mode": "default"}, {"backend": "aot_eager"}),
    "cuda graphs": ({"mode": "reduce-overhead"}, {"backend": "eager"}),
}
"""How blocks are compiled, and how with --quick."""
VALUES = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")
"""What would wait, on any device; Adam asks for its own counters, which are on the CPU."""


def _copied(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *given, **more: call(*given, **more).clone()


class Late(Exception):
    """Raised in a run that has used up its time."""


class Clock(QuietUi):
    """Notes when tasks end, and stops a run at a time."""

    def __init__(self, out: Path, stop_at: float) -> None:
        """Stop at `stop_at` of time.monotonic."""
        super().__init__(out, write=lambda line: None)
        self.stop_at, self.done = stop_at, 0
        self.tasks: list[dict[str, Any]] = []
        self.begun = time.monotonic()

    def step(self) -> None:
        """Raise Late when it is."""
        self.done += 1
        if time.monotonic() > self.stop_at:
            raise Late

    def task_done(self, record: dict[str, Any]) -> None:
        """Note the time."""
        self.tasks.append({"seconds": time.monotonic() - self.begun, "images": record["train_images"]})


class Bench:
    """The parts, which share a device and what is left of the time."""

    def __init__(self, given: argparse.Namespace) -> None:
        """Take the arguments of the command."""
        self.given, self.device = given, torch.device(given.device)
        self.until = time.monotonic() + given.limit
        self.size = given.image_size or (32 if given.quick else 224)
        self.found: dict[str, Any] = {"command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]), "steps": []}

    def config(self, precision: str, batch: int, *more: str) -> Config:
        """L2P as its recipe is, on this model."""
        model = [f"backbone.name={self.given.model}", "backbone.weights=random", f"backbone.image_size={self.size}"]
        rest = [
            f"backbone.precision={precision}",
            f"train.batch_size={batch}",
            "train.epochs=1",
            f"device={self.device}",
        ]
        return load_config("l2p", [*model, *rest, f"eval.batch_size={max(batch, 16)}", *more])

    def images(self, count: int, classes: int = 10) -> ImageSet:
        """Noise of the size that the model takes."""
        pixels = np.random.default_rng(0).integers(0, 256, (count, self.size, self.size, 3), dtype=np.uint8)
        return ImageSet.from_arrays(pixels, [str(i % classes) for i in range(count)])

    def machine(self) -> Iterator[dict[str, Any]]:
        """What is measured on, and how fast a product of matrices is there."""
        yield {
            "machine": circumstances(self.config("fp32", 16), self.device)["versions"],
            "peak_gflops": {kind: matmul_gflops(self.device, kind) for kind in ("fp32", "bf16")},
        }

    def steps(self) -> Iterator[dict[str, Any]]:
        """Images a second of learning and testing: both precisions, with and without compiling, two batch sizes."""
        flop = self._flop()
        modes = [mode for mode in COMPILERS if mode != "cuda graphs" or self.given.quick or self.device.type == "cuda"]
        for precision in ("fp32", "bf16"):
            for mode in modes:
                backbone = Backbone.create(self.config(precision, 16).backbone).to(self.device)
                self._compile(backbone, mode)
                for batch in (2, 4) if self.given.quick else (16, 128):
                    row = {"precision": precision, "mode": mode, "batch": batch}
                    yield {"steps": [*self.found["steps"], {**row, **self._guarded(self._step, backbone, row, flop)}]}

    def _compile(self, backbone: Backbone, mode: str) -> None:
        """Let the blocks be compiled, each by itself, when they are first called."""
        torch.compiler.reset()  # what other modes have compiled counts too, and beyond a limit a block runs as it is
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # or a row would be of something else than it says
        for block in backbone.vit.blocks if COMPILERS[mode] else []:
            block.compile(**COMPILERS[mode][self.given.quick])
            if mode == "cuda graphs":  # the next graph that begins takes the memory of what this one gave
                block._compiled_call_impl = _copied(block._compiled_call_impl)

    def _step(self, backbone: Backbone, row: dict[str, Any], flop: dict[str, float]) -> dict[str, Any]:
        config, batch = self.config(row["precision"], row["batch"]), row["batch"]
        images = self.images(batch * (3 if self.given.quick else 10))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        Learner(config, backbone).learn(images.select(range(2 * batch)))  # a warm-up, and the compiler's time
        learner = Learner(config, backbone)
        learning = self._timed(lambda: learner.learn(images))
        learner.evaluate(images.select(range(batch)))
        testing = self._timed(lambda: learner.evaluate(images.select(range(len(images)))))
        rates = {"learning": len(images) / learning, "testing": len(images) / testing}
        peak = self.found["peak_gflops"][row["precision"]]
        shares = {f"{name}_share_of_peak": rate * flop[name] / 1e9 / peak for name, rate in rates.items()}
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return {**{f"{name}_images_per_second": rate for name, rate in rates.items()}, **shares, "memory_bytes": memory}

    def _flop(self) -> dict[str, float]:
        """Operations an image."""
        learner, images = Learner(self.config("fp32", 2)), self.images(2)
        found = {}
        for name, job in (("learning", lambda: learner.learn(images)), ("testing", lambda: learner.evaluate(images))):
            with FlopCounterMode(display=False) as counter:
                job()
            found[name] = counter.get_total_flops() / len(images)
        return found

    def waits(self) -> Iterator[dict[str, Any]]:
        """How often a step waits for the device: what three steps more add to the count of the profiler."""
        counts = []
        for number in (2, 2, 5):  # the first one has what is done once in a process
            learner, images = Learner(self.config("fp32", 4)), self.images(4 * number)
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
            with profile(activities=kinds) as profiler:
                learner.learn(images)
            events = profiler.key_averages()
            names = (*WAITS, *VALUES)
            counts.append({name: sum(e.count for e in events if e.key.startswith(name)) for name in names})
        yield {"waits_a_step": {name: (counts[2][name] - counts[1][name]) / 3 for name in names}}

    def whole(self) -> Iterator[dict[str, Any]]:
        """Split CIFAR-100, ten tasks, as the recipe says, for as long as there is time."""
        with tempfile.TemporaryDirectory() as folder:
            per, classes = ((3, 1), 4) if self.given.quick else ((500, 100), 100)
            arrays: dict[str, Any] = {}
            for part, count in zip(("train", "test"), per, strict=True):
                noise = np.random.default_rng(0).integers(0, 256, (count * classes, 32, 32, 3), dtype=np.uint8)
                arrays |= {f"{part}_images": noise, f"{part}_labels": np.arange(count * classes) % classes}
            np.savez(Path(folder) / "noise.npz", **arrays)
            more = ["data.name=npz", f"data.root={folder}/noise.npz", *(["tasks=2"] if self.given.quick else [])]
            config = self.config("auto", 4 if self.given.quick else 128, *more)
            clock, out = Clock(Path(folder), self.until), Path(folder) / "run"
            try:
                run(config, out, clock)
                ended = True
            except Late:
                ended = False
            yield {"whole_run": {"ended": ended, "steps": clock.done, "tasks": clock.tasks}}
            if torch.cuda.device_count() > 1 and self.device.type == "cuda":
                yield {"several": self._several(config, Path(folder))}

    def _several(self, config: Config, folder: Path) -> dict[str, Any]:
        """Tasks of two classes on all GPUs, with exchange by nccl, for as long as there is time."""
        number, start = torch.cuda.device_count(), time.monotonic()
        file = folder / "several.yaml"
        file.write_text(json.dumps({**config.model_dump(mode="json"), "device": "auto", "tasks": 50}))
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), "-m", "promptcl"]
        job = [sys.executable, *words, "train", str(file), "--out", str(folder / "several"), "--quiet"]
        left = max(30.0, self.until - start)
        with subprocess.Popen(job) as process:
            try:
                code: int | None = process.wait(left)
            except subprocess.TimeoutExpired:
                code = None
                process.terminate()  # and not killed: it ends its workers, which would else go on
        return {"gpus": number, "exit_code": code, "seconds": time.monotonic() - start}

    def _timed(self, job: Callable[[], object]) -> float:
        """Seconds until the device has done it."""
        wait: Callable[[], object] = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        start = time.perf_counter()
        job()
        wait()
        return time.perf_counter() - start

    def _guarded(self, job: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """What `job` gives, or why it gives nothing: the others are measured all the same."""
        if time.monotonic() > self.until:
            return {"left_out": "no time was left"}
        try:
            return job(*arguments)
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}

    def write(self) -> None:
        """Write what is known so far."""
        self.given.out.parent.mkdir(parents=True, exist_ok=True)
        disk.write(self.given.out, (json.dumps(self.found, indent=1) + "\n").encode())


def main(arguments: list[str]) -> None:
    """Do all parts; the file has what was found until then, whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--quick", action="store_true", help="a few small steps: to see that all of it runs")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which nothing new begins")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    bench = Bench(parser.parse_args(arguments))
    for part in (bench.machine, bench.waits, bench.steps, bench.whole):
        start = time.monotonic()
        for found in part():
            bench.found |= found
            bench.write()
        bench.found.setdefault("seconds", {})[part.__name__] = time.monotonic() - start
        bench.write()
        print(part.__name__, f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
