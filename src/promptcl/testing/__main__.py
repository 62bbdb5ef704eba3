"""Do in new processes what `Bench.elsewhere` asks for: `python -m promptcl.testing`, with a job a line on stdin.

This process only imports; each job is done in processes forked from it, and their exit codes are written to stdout.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from promptcl.testing import checks
from promptcl.testing.bench import Bench, named


def main(file: str) -> None:
    """Find the method that `file` names, and check what can only be checked in a new process."""
    spec = json.loads(Path(file).read_bytes())
    sys.path[:] = spec["path"]
    if spec["name"].startswith("promptcl_checked."):
        # Under a name of its own: what a program does `if __name__ == "__main__"` is not to be done again.
        made = importlib.util.spec_from_file_location("promptcl_checked_module", spec["file"])
        assert made is not None
        assert made.loader is not None
        home = importlib.util.module_from_spec(made)
        sys.modules[home.__name__] = home
        made.loader.exec_module(home)
        named(getattr(home, spec["class"]), spec["name"])
    checks.elsewhere(Bench(spec["name"], spec["options"], Path(spec["folder"]), spec["settings"]))


def child(job: str, environment: dict[str, str]) -> int:
    """Fork a process that does `job`; its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        errors = Path(job).with_name(f"stderr-{environment['RANK']}").open("w")
        os.dup2(errors.fileno(), 2)
        os.dup2(2, 1)  # what a method prints is no answer
        os.environ.update(environment)
        main(job)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(children: list[int]) -> list[int]:
    """Exit codes of all children; when one fails, the others, which may wait for it, are killed."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for number in children:
            if number in codes:
                continue
            ended, status = os.waitpid(number, os.WNOHANG)
            if not ended:
                continue
            codes[number] = os.waitstatus_to_exitcode(status)
            if codes[number] > 0:
                time.sleep(0.5)  # what failed first says why
                for other in children:
                    with contextlib.suppress(ProcessLookupError):
                        if other not in codes:
                            os.kill(other, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[number] for number in children]


def serve() -> None:
    """Do the jobs on stdin, one after the other, until it is closed."""
    torch.set_num_threads(1)
    running: list[int] = []

    def end(*_: object) -> None:
        for number in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        ranks = [{**asked["group"], "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(asked["count"])]
        running[:] = [child(asked["job"], rank) for rank in ranks]
        print(json.dumps(wait_for(running)), flush=True)
        running.clear()


if __name__ == "__main__":
    serve()
