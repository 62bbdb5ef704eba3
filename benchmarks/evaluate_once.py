"""What does a whole run gain where features of test images are computed once? Two programs in turn, task by task.

Command: python benchmarks/evaluate_once.py ROW ...      (adds to benchmarks/results/evaluate_once.json)
         python benchmarks/evaluate_once.py --before FOLDER ROW ...     against the checkout of another commit
Without --before the other program is this one, which forgets what it keeps before each evaluation. The processes take
turns, a task each, and have one thread; seconds are those that a process computed, whoever else is on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evaluate_once.json"
ROWS = {
    "ranpac": "ranpac method.adapt=none method.width=1300 $FROZEN",
    "ranpac-deep": "ranpac-deep method.width=1300 $LITE train.batch_size=32",
    "l2p-tuned": "l2p-tuned $LITE",
    "l2p": "l2p $LITE train.epochs=1",
    "ease": "ease $LITE train.epochs=1 data.train_per_class=20 data.test_per_class=10",
}
CHILD = """
import json, os, sys, time
from promptcl.experiments.run import run
from promptcl.experiments.progress import QuietUi
from promptcl.learner import Learner
from promptcl.recipes.load import load_config
from pathlib import Path

forget, out, recipe, *settings = sys.argv[1:]
evaluate, spent, begin = Learner.evaluate, [0.0], time.process_time()

def timed(learner, *arguments, **more):
    if forget == "forget":
        learner.batches.forget_queries()
    start = time.process_time()
    found = evaluate(learner, *arguments, **more)
    spent[0] += time.process_time() - start
    return found

class Turns(QuietUi):
    def task(self, *arguments):
        print("ready", file=sys.stderr, flush=True)
        sys.stdin.readline()
        super().task(*arguments)

Learner.evaluate = timed
found = run(load_config(recipe, settings), Path(out), Turns(Path(out), write=lambda line: None))
print(json.dumps({
    "seconds": time.process_time() - begin, "evaluation_seconds": spent[0],
    "average_accuracy": found["average_accuracy"],
    "accuracy_matrix": found["accuracy_matrix"], "git_commit": found["git_commit"], "versions": found["versions"],
    "test_images": found["tasks"][-1]["eval_images"], "evaluated": sum(t["eval_images"] for t in found["tasks"]),
}))
"""


def start(tree: Path, forget: bool, out: Path, words: list[str]) -> subprocess.Popen[str]:
    """A run of the checkout `tree` that waits for its turn before each task."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, "forget" if forget else "keep", str(out), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=tree)


def in_turn(runs: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """Give each run its turns, in the other order every time, and return what they print. Raises RuntimeError."""
    said: dict[int, str] = {}
    waiting = list(enumerate(runs))
    for _, run in waiting:
        _until_ready(run)
    while waiting:
        for number, run in list(waiting):
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
            if not _until_ready(run):
                assert run.stdout is not None
                said[number] = run.stdout.read()
                if run.wait():
                    raise RuntimeError(f"a run ended with exit code {run.returncode}")
                waiting.remove((number, run))
        waiting.reverse()
    return [json.loads(said[number]) for number in range(len(runs))]


def _until_ready(run: subprocess.Popen[str]) -> bool:
    """Whether a run waits for a turn; False: it has ended."""
    assert run.stderr is not None
    for line in run.stderr:
        if line == "ready\n":
            return True
        sys.stderr.write(line)
    return False


def measure(row: str, before: Path | None, more: list[str]) -> dict[str, Any]:
    """Both runs of a row, with more settings, and their ratio."""
    words = [*shlex.split(os.path.expandvars(ROWS[row])), *more]
    with tempfile.TemporaryDirectory() as folder:
        trees = [(before or ROOT, before is None), (ROOT, False)]
        runs = [start(tree, forget, Path(folder) / str(n), words) for n, (tree, forget) in enumerate(trees)]
        other, ours = in_turn(runs)
    same = other.pop("accuracy_matrix") == ours.pop("accuracy_matrix")
    return {
        "row": row,
        "command": " ".join(["promptcl train", ROWS[row], *more]),
        "against": "the commit before" if before else "the same, which forgets before each evaluation",
        "same_accuracies": same,
        "times_as_fast": other["seconds"] / ours["seconds"],
        "evaluation_times_as_fast": other["evaluation_seconds"] / ours["evaluation_seconds"],
        "other": other,
        "ours": ours,
    }


def main(arguments: list[str]) -> None:
    """Measure the rows and write them, each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--set", action="append", default=[], help="one more setting, key=value")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("rows", nargs="+", choices=ROWS)
    given = parser.parse_args(arguments)
    for row in given.rows:
        found = measure(row, given.before, given.set)
        known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else []
        known = [one for one in known if (one["row"], one["against"]) != (row, found["against"])]
        given.out.write_text(json.dumps([*known, found], indent=1) + "\n", encoding="utf-8")
        print(json.dumps({k: v for k, v in found.items() if k not in ("other", "ours")}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
