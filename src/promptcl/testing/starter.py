"""Start new processes quickly: one that has imported everything, and has done nothing else, is forked for each.

To import torch takes seconds, and the checks of twenty methods start forty processes.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from functools import cache
from typing import Any


@cache
def _starter() -> subprocess.Popen[str]:
    """The process that is forked; it ends with this one."""
    command = [sys.executable, "-m", "promptcl.testing"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(_end, made)
    return made


def _end(made: subprocess.Popen[str]) -> None:
    """End the starter and whatever it has started."""
    made.terminate()
    made.wait()
    for pipe in (made.stdin, made.stdout):
        if pipe is not None:
            pipe.close()
    atexit.unregister(_end)
    _starter.cache_clear()


def run(job: str, group: dict[str, str], count: int, limit: float) -> list[int] | None:
    """Do `promptcl.testing.__main__.main(job)` in `count` new processes of a group; their exit codes.

    group: environment variables of all; each gets its RANK too, and writes its errors to stderr-RANK beside the job.
    When one fails, the others are killed. None: after `limit` seconds they had not ended.
    """
    made, told = _starter(), queue.Queue[str]()
    assert made.stdin is not None
    assert made.stdout is not None
    made.stdin.write(json.dumps({"job": job, "group": group, "count": count}) + "\n")
    made.stdin.flush()
    read: Any = made.stdout.readline
    threading.Thread(target=lambda: told.put(read()), daemon=True).start()
    try:
        line = told.get(timeout=limit)
    except queue.Empty:
        _end(made)
        return None
    if not line:  # the starter itself has died
        _end(made)
        return [1] * count
    codes: list[int] = json.loads(line)
    return codes
