"""Do in this process what `Bench.elsewhere` asked for: `python -m promptcl.testing JOB.json`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch

from promptcl.testing import checks
from promptcl.testing.bench import Bench, named


def main(file: str) -> None:
    """Find the method that `file` names, and check what can only be checked in a new process."""
    spec = json.loads(Path(file).read_bytes())
    sys.path[:] = spec["path"]
    torch.set_num_threads(1)
    if spec["name"].startswith("promptcl_checked."):
        # Under a name of its own: what a program does `if __name__ == "__main__"` is not to be done again.
        made = importlib.util.spec_from_file_location("promptcl_checked_module", spec["file"])
        assert made is not None
        assert made.loader is not None
        home = importlib.util.module_from_spec(made)
        sys.modules[home.__name__] = home
        made.loader.exec_module(home)
        named(getattr(home, spec["class"]), spec["name"])
    checks.elsewhere(Bench(spec["name"], spec["options"], Path(spec["folder"])))


if __name__ == "__main__":
    main(sys.argv[1])
