"""Set up and go, with nothing but Python and git: `python3 dev.py demo` or `python3 dev.py test`.

The first call makes .venv and installs the package with its test tools (about 6 GB on Linux, nearly all of it torch).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
ACTIVATE = r".venv\Scripts\activate" if os.name == "nt" else "source .venv/bin/activate"
CHECKS = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "pytest": ["pytest", "-q", "-n", "2"],
}


def main(arguments: list[str]) -> int:
    """Run `demo` (further arguments go to `promptcl train`) or `test`; the exit code says whether it worked."""
    if sys.version_info < (3, 10):  # noqa: UP036 - reached by whoever has an old python3
        return say(f"error: Python {sys.version.split()[0]} is too old; use Python 3.10 or newer", 2)
    if arguments[:1] not in (["demo"], ["test"]):
        return say("usage: python3 dev.py demo [key=value ...] [--out DIR] | python3 dev.py test", 2)
    os.chdir(ROOT)
    try:
        set_up()
        if arguments[0] == "demo":
            try:
                run("promptcl", "train", *arguments[1:])
            finally:
                say(f"to have the command promptcl: {ACTIVATE}")
        else:
            test()
    except subprocess.CalledProcessError as error:
        return say(f"failed: {' '.join(map(str, error.cmd))}", error.returncode)
    except KeyboardInterrupt:
        return 130  # what was interrupted has said so
    return 0


def set_up() -> None:
    """Make .venv and install `.[dev]`, unless that was done for this pyproject.toml and constraints.txt."""
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files) + str(ROOT).encode()).hexdigest()
    stamp = VENV / "promptcl-installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    say("installing into .venv, about 6 GB, some minutes (once)")
    if not PYTHON.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    # Some of the pinned versions need Python 3.11.
    pins = ["-c", "constraints.txt"] if sys.version_info >= (3, 11) else []
    run("pip", "install", "--quiet", "--disable-pip-version-check", "-e", ".[dev]", *pins)
    stamp.write_text(wanted)


def test() -> None:
    """Style, types and tests; every check runs, the first failure decides."""
    failures = []
    for name, command in CHECKS.items():
        say(f"== {name}")
        try:
            run(*command)
        except subprocess.CalledProcessError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    say("all checks passed")


def run(module: str, *arguments: str) -> None:
    """`python -m module arguments` with the Python of .venv; Ctrl-C reaches it too, and it ends as it wants to."""
    process = subprocess.Popen([str(PYTHON), "-m", module, *arguments])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code:
        raise subprocess.CalledProcessError(code, process.args)


def say(text: str, code: int = 0) -> int:
    """Print a line now, in order with what the tools print; return `code`."""
    print(text, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
