"""Set up and go, with nothing but Python and git: `python3 dev.py demo`, `serve`, `test`, `check`, `fix` or `wheel`.

The first call makes .venv and installs the package with its test tools (about 6 GB on Linux, nearly all of it torch).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
ACTIVATE = r".venv\Scripts\activate" if os.name == "nt" else "source .venv/bin/activate"
OLDEST = (3, 10)
USAGE = """usage: python3 dev.py COMMAND
  demo [key=value ...] [--out DIR]  learns ten digits in five tasks on a small ViT (promptcl train)
  serve [OPTION ...]                a page where a learner that knows ten digits is asked and corrected (promptcl serve)
  test                              style, types and all tests
  test [--fast] [PYTEST ARGUMENT]   only tests; --fast: none of those marked slow
  check                             style and types: ruff, ruff format, mypy
  fix                               mends the style: ruff --fix, ruff format
  wheel [FOLDER]                    builds a wheel, installs it in a clean environment, tries it; keeps it in FOLDER"""
CHECKS = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
}
ACCEPTED_SKIPS = {
    "real data and weights not found": "gigabytes that are not downloaded for a test",
    "no CUDA device": "the same code is tested on the processor",
    "does not list its features as x86": "which features count is only looked up there",
    "no chromium": "reports and the page of `promptcl serve` are drawn in a browser wherever there is one",
    "only root can mount|does not allow mounts": "a full disk is tested where a small one can be mounted",
}
"""Why a test may be skipped in continuous integration (CI is set), and why that is accepted; anything else fails."""


class Stop(Exception):
    """Nothing more can be done: a sentence for the user and the exit code."""

    def __init__(self, sentence: str, code: int = 1) -> None:
        """Say `sentence` and exit with `code`."""
        super().__init__(sentence)
        self.code = code


def main(arguments: list[str]) -> int:
    """Run the command that `arguments` names; the exit code says whether it worked."""
    if sys.version_info < OLDEST:
        return say(f"error: Python {sys.version.split()[0]} is too old; use Python 3.10 or newer", 2)
    commands = {"demo": demo, "serve": serve, "test": test, "check": check, "fix": fix, "wheel": wheel}
    name, *rest = arguments or [""]
    own = {"check": 0, "fix": 0, "wheel": 1}  # how many arguments follow where none are handed on to another program
    if name not in commands or (name in own and (len(rest) > own[name] or any(word.startswith("-") for word in rest))):
        return say(USAGE, 2)
    os.chdir(ROOT)
    try:
        set_up(VENV)
        commands[name](*rest)
    except Stop as stop:
        return say(f"error: {stop}", stop.code)
    except subprocess.CalledProcessError as error:
        return say(f"failed: {' '.join(map(str, error.cmd))}", error.returncode)
    except KeyboardInterrupt:
        return 130  # what was interrupted has said so
    return 0


# The commands


def demo(*arguments: str) -> None:
    """Learn ten digits in five tasks; `arguments` go to `promptcl train`."""
    try:
        run("promptcl", "train", *arguments)
    finally:
        say(f"to have the command promptcl: {ACTIVATE}")


def serve(*arguments: str) -> None:
    """Open the page of a learner that knows ten digits, made at the first call; `arguments` go to `promptcl serve`."""
    run_python("scripts/serve_digits.py", *arguments)


def check() -> None:
    """Style and types; every check runs, the first failure decides."""
    failures = []
    for name, command in CHECKS.items():
        say(f"== {name}")
        try:
            run(*command)
        except subprocess.CalledProcessError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def fix() -> None:
    """Mend what ruff can mend; what it cannot is printed, and is a failure."""
    try:
        run("ruff", "check", "--fix", ".")
    finally:
        run("ruff", "format", ".")


def test(*arguments: str) -> None:
    """Without arguments checks and all tests; with --fast or pytest's own arguments only the tests they name."""
    failure = None
    if not arguments:
        try:
            check()
        except subprocess.CalledProcessError as error:
            failure = error  # the tests run all the same
    say("== pytest")
    chosen = [word for word in arguments if word != "--fast"]
    fast = ["-m", "not slow"] if "--fast" in arguments else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        run("pytest", "-q", "-n", "2", "--dist", "worksteal", f"--junitxml={report}", *fast, *chosen)
        if os.environ.get("CI"):
            judge_skips(report)
    if failure:
        raise failure
    say("all tests passed" if arguments else "all checks passed")


def judge_skips(report: Path) -> None:
    """Print which skips are accepted and refuse those of pytest's `report` (JUnit's XML) that are not."""
    say("accepted skips:")
    for pattern, why in ACCEPTED_SKIPS.items():
        say(f"  {pattern}: {why}")
    skipped = [element for element in ElementTree.parse(report).iter("skipped") if element.get("type") == "pytest.skip"]
    reasons = [element.get("message", "") for element in skipped]
    others = sorted({reason for reason in reasons if not re.search("|".join(ACCEPTED_SKIPS), reason)})
    if others:
        raise Stop(f"a test was skipped for a reason that dev.py does not accept: {'; '.join(others)}")
    say(f"{len(reasons)} tests skipped, all for accepted reasons")


def wheel(*folder: str) -> None:
    """Build a wheel, install it in a clean environment outside the checkout, try it there; keep it in `folder`."""
    run_python("scripts/try_wheel.py", *folder)


# The environment


def set_up(venv: Path) -> None:
    """Make or mend .venv and install `.[dev]`, unless that was done for this pyproject.toml and constraints.txt."""
    version = make_or_mend(venv)
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files) + str(ROOT).encode()).hexdigest()
    stamp = venv / "promptcl-installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    say("installing into .venv, about 6 GB, some minutes (once)")
    # Some of the pinned versions need Python 3.11.
    pins = ["-c", "constraints.txt"] if version >= (3, 11) else []
    # Only what is imported is compiled, when it is: of all those files that is a small part.
    run("pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "-e", ".[dev]", *pins)
    stamp.write_text(wanted)


def make_or_mend(venv: Path) -> tuple[int, ...]:
    """Afterwards `venv` is an environment whose Python runs and has pip; returns that Python's version.

    An environment that works is left as it is. Only an environment is ever emptied, never a folder of another kind.
    """
    if (venv.exists() or venv.is_symlink()) and not (venv / "pyvenv.cfg").is_file() and not is_empty(venv):
        raise Stop(f"{venv} is not a virtual environment (it has no pyvenv.cfg); move it away and repeat", 2)
    version = version_of(venv)
    if version >= OLDEST and not has_pip(venv):
        say(f"{venv.name} has no pip; adding it")
        subprocess.run([str(python_of(venv)), "-m", "ensurepip", "--upgrade"], capture_output=True)
    if version >= OLDEST and has_pip(venv):
        return version
    if not can_make_environments():
        package = "python{}.{}-venv".format(*sys.version_info)
        here = f"{sys.executable} cannot make virtual environments"
        raise Stop(f"{here}; on Debian and Ubuntu install {package} (apt-get install {package}) and repeat", 2)
    say(f"{venv.name} does not work; making it anew" if (venv / "pyvenv.cfg").is_file() else f"making {venv.name}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    return sys.version_info[:2]


def is_empty(folder: Path) -> bool:
    """True for a folder without anything in it, which is what an interrupted start may leave."""
    return folder.is_dir() and not any(folder.iterdir())


def python_of(venv: Path) -> Path:
    """The interpreter of an environment."""
    return venv / SCRIPTS / ("python.exe" if os.name == "nt" else "python")


def version_of(venv: Path) -> tuple[int, ...]:
    """(major, minor) of an environment's Python; () if it does not run, as when the Python it was made by is gone."""
    output = answer(python_of(venv), "-c", "import sys; print(*sys.version_info[:2])")
    return tuple(map(int, output.split())) if output else ()


def has_pip(venv: Path) -> bool:
    """True if an environment's pip runs."""
    return answer(python_of(venv), "-m", "pip", "--version") is not None


def can_make_environments() -> bool:
    """False where a distribution has put the parts that `python -m venv` needs into a package of their own."""
    try:
        return all(importlib.util.find_spec(name) for name in ("venv.__main__", "ensurepip.__main__"))
    except ImportError:
        return False


# What all use


def run(module: str, *arguments: str) -> None:
    """`python -m module arguments` with the Python of .venv."""
    run_python("-m", module, *arguments)


def run_python(*arguments: str) -> None:
    """The Python of .venv with these arguments; Ctrl-C and SIGTERM reach it too, and it ends as it wants to.

    It keeps what it compiles, even where a container asks Python not to: else each start would compile torch again.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([str(python_of(VENV)), *arguments], env=environment)
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise subprocess.CalledProcessError(code, process.args)


def answer(*command: str | Path) -> str | None:
    """What a command prints, None if it fails or cannot be started."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def say(text: str, code: int = 0) -> int:
    """Print a line now, in order with what the tools print; return `code`."""
    print(text, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
