"""What torchrun starts in test_processes.py: several runs in one group of processes, for starting one takes seconds.

Arguments: jobs.json, the folder for them, the folder of an interrupted run to finish.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from promptcl.cli import main as cli
from promptcl.config.schema import Config
from promptcl.errors import UserError
from promptcl.experiments import run as experiment
from promptcl.experiments.progress import QuietUi
from promptcl.runtime import processes


def main(jobs: Path, out: Path, interrupted: Path) -> None:
    with processes.group():
        for name, settings in json.loads(jobs.read_text()).items():
            experiment.run(Config.model_validate(settings), out / name, QuietUi(out, write=lambda line: None))
        cli.app(["train", "--resume", str(interrupted), "--quiet"], standalone_mode=False)
        said = []
        for error in (UserError("one sentence"), OSError(28, "full", "disk")):
            try:
                processes.on_first(lambda error=error: fail(error))  # type: ignore[misc]
            except (UserError, OSError) as raised:
                said.append(repr(raised))
        (out / f"said{processes.rank()}").write_text(f"{processes.size()} {said}")


def fail(error: Exception) -> None:
    assert processes.rank() == 0
    raise error


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
