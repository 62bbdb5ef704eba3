"""The training step of several methods beside l2p's, in float32 and bfloat16, in turn in one process.

Command: python benchmarks/steps.py NAME     (writes benchmarks/results/steps/NAME.json; $LITE as in docs/speed.md)
         python benchmarks/steps.py --table | --check     (writes the tables of docs/speed.md, or compares them)
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in front of it leaves out the matrix units of the processor, so that products in
bfloat16 are those of processors without them. Seconds are those that the process computed, whoever else is there.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from marked import write

from promptcl.backbone import Backbone, build
from promptcl.data import load_domains, make_stream
from promptcl.experiments.speed import circumstances
from promptcl.learner import Learner
from promptcl.recipes.load import load_config

FOLDER = Path(__file__).resolve().parent / "results" / "steps"
ROUNDS, BATCH = 5, 16
METHODS = {
    "l2p": ["l2p"],
    "l2p, clean query": ["l2p", "train.query_view=clean"],
    "dualprompt": ["dualprompt"],
    "dualprompt, clean query": ["dualprompt", "train.query_view=clean"],
    "oneprompt": ["oneprompt"],
    "ranpac, adapters": ["ranpac-deep"],
}


def step_of(words: list[str], precision: str, backbone: Backbone) -> tuple[Callable[[], None], Learner, list[int]]:
    """A function that takes the next step of the first task, its learner, and the images of each pass."""
    settings = [*words[1:], *shlex.split(os.environ["LITE"]), f"backbone.precision={precision}"]
    config = load_config(words[0], [*settings, f"train.batch_size={BATCH}", "data.train_per_class=10"])
    learner = Learner(config, backbone)
    with torch.no_grad():
        task = learner.begin(make_stream(load_domains(config.data), config).tasks[0].train)
        stage = next(iter(learner.method.learn(learner.backbone, task)))
    trainer = learner.trainer(task)
    run, number, passes = trainer.prepare(stage, 0), [0], []
    assert stage.images is not None
    order_N = torch.arange(len(stage.images))
    learner.batches.queries.whole(stage.images)  # clean queries are known from the second epoch on
    learner.method.train()
    backbone.vit.patch_embed.register_forward_hook(lambda module, given, out: passes.append(len(given[0])))

    def step() -> None:
        batch, _ = trainer.batch(run, number[0] % (len(order_N) // BATCH), order_N)
        number[0] += 1
        run.optimizer.zero_grad(set_to_none=True)
        (run.stage.loss or learner.method.loss)(backbone, batch).backward()
        run.optimizer.step()

    return step, learner, passes


def measure() -> dict[str, Any]:
    """Images a second of each method and precision, and what its step takes beside l2p's of the same round."""
    steps = {}
    for precision in ("fp32", "bf16"):
        for name, words in METHODS.items():
            config = load_config("l2p", [*shlex.split(os.environ["LITE"]), f"backbone.precision={precision}"])
            steps[name, precision] = step_of(words, precision, Backbone.create(config.backbone))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for number in range(ROUNDS + 1):
        for key, (step, _, passes) in steps.items():
            passes.clear()
            start = time.process_time()
            step()
            if number:  # the first is a warm-up
                seconds[key].append(time.process_time() - start)
    rows = []
    for (name, precision), values in seconds.items():
        first, exact = seconds["l2p", precision], seconds[name, "fp32"]
        rows.append(
            {
                "method": name,
                "precision": precision,
                "images_per_second": BATCH / statistics.median(values),
                "times_l2p": statistics.median(a / b for a, b in zip(first, values, strict=True)),
                "times_fp32": statistics.median(a / b for a, b in zip(exact, values, strict=True)),
                "passes": len(steps[name, precision][2]),
            }
        )
    learner = steps["l2p", "fp32"][1]
    return {"isa": os.environ.get("ONEDNN_MAX_CPU_ISA"), "rows": rows, **circumstances(learner.config, learner.device)}


def loading() -> dict[str, float]:
    """Seconds of loading the ViT of the demo, and of its copy without values, which is checked first."""
    config, found, empty = load_config("demo").backbone, {}, torch.device("meta")
    kwargs = {**config.kwargs, "img_size": config.image_size}
    jobs: dict[str, Callable[[], object]] = {
        "without_values": lambda: build.create(config.name, kwargs, empty),
        "all": lambda: build.load(config),
    }
    for name, job in jobs.items():
        times = []
        for _ in range(5):
            start = time.process_time()
            job()
            times.append(time.process_time() - start)
        found[name] = statistics.median(times)
    return found


def tables() -> dict[str, str]:
    """A table of docs/speed.md for each file of results."""
    head = "| step | passes an image | float32, images/s | times `l2p` | bfloat16, images/s | times float32 |\n"
    found = {}
    for file in sorted(FOLDER.glob("*.json")):
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        of = {(row["method"], row["precision"]): row for row in rows}
        lines = [head, "|:--|--:|--:|--:|--:|--:|\n"]
        for name in dict.fromkeys(row["method"] for row in rows):
            exact, rounded = of[name, "fp32"], of[name, "bf16"]
            method, _, rest = name.partition(",")
            clean = " from the second epoch on" if "clean" in name else ""
            lines.append(
                f"| `{method}`{rest and ',' + rest} | {exact['passes']}{clean} | {exact['images_per_second']:.1f} "
                f"| {exact['times_l2p']:.2f} | {rounded['images_per_second']:.1f} | {rounded['times_fp32']:.2f} |\n"
            )
        found[f"steps-{file.stem}"] = "".join(lines)
    return found


def main(name: str) -> int:
    """Measure and write the results NAME.json, or see to the page; the exit code is that of `--check`."""
    if name not in ("--table", "--check"):
        FOLDER.mkdir(exist_ok=True)
        result = {**measure(), "demo_seconds": loading()}
        (FOLDER / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({"rows": result["rows"], "demo_seconds": result["demo_seconds"]}))
        return 0
    page = FOLDER.parents[2] / "docs" / "speed.md"
    return write(page, tables(), "python benchmarks/steps.py --table", check=name == "--check")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
