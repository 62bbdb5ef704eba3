"""Build a wheel, install it in a clean environment outside the checkout, and use it there: `python3 dev.py wheel`.

A checkout works with files that an installed wheel may lack: recipes, the small ViT, the template of the report.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS, SUFFIX = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
PIP = ["-m", "pip", "--disable-pip-version-check"]
WHERE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def main(keep: Path | None = None) -> None:
    """Build, look inside, install, try; then delete it all but the wheel, which is put into the folder `keep`."""
    with tempfile.TemporaryDirectory(prefix="promptcl-wheel-") as folder:
        place = Path(folder).resolve()
        print("== build the wheel", flush=True)
        built = build(place)
        print("== look inside", flush=True)
        with zipfile.ZipFile(built) as archive:
            files = set(archive.namelist())
            (name,) = (name for name in files if name.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(archive.read(name).decode())
        check_files(files)
        check_requirements(metadata)
        print("== install it in a clean environment", flush=True)
        install(built, place / "env")
        print("== try it in an empty folder", flush=True)
        (place / "empty").mkdir()
        use(place / "env", place / "empty")
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(built, keep)
    print(f"the wheel works{f'; it is in {keep}' if keep else ''}")


def build(place: Path) -> Path:
    """Build from a copy of the sources: setuptools would take over what an older build left in build/."""
    source = place / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call(sys.executable, *PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", place, source)
    (built,) = place.glob("promptcl-*.whl")
    print(f"{built.name}, {built.stat().st_size / 1e6:.1f} MB", flush=True)
    return built


def check_files(inside: set[str]) -> None:
    """The wheel has every file of src/promptcl."""
    source = ROOT / "src"
    paths = [path for path in (source / "promptcl").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    missing = sorted({path.relative_to(source).as_posix() for path in paths} - inside)
    if missing:
        sys.exit(f"error: the wheel lacks {', '.join(missing)}; see package-data in pyproject.toml")
    print(f"all {len(paths)} files of src/promptcl", flush=True)


def check_requirements(metadata: Message) -> None:
    """The wheel asks for the packages that pyproject.toml names, and offers its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = sorted(line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line)
    extras = sorted(metadata.get_all("Provides-Extra", []))
    if asked != sorted(project["dependencies"]) or extras != sorted(project["optional-dependencies"]):
        sys.exit(f"error: the wheel asks for {asked} with extras {extras}, which is not what pyproject.toml says")
    print(f"asks for {', '.join(asked)}; extras {', '.join(extras)}", flush=True)


def install(built: Path, environment: Path) -> None:
    """A new environment that holds this wheel alone; what it depends on is borrowed from .venv, sparing 6 GB."""
    python = environment / SCRIPTS / f"python{SUFFIX}"
    call(sys.executable, "-m", "venv", "--without-pip", environment)
    pip: list[str | Path] = [sys.executable, *PIP, "--python", python]
    call(*pip, "install", "--quiet", "--no-index", "--no-deps", built)
    own, borrowed = (call(interpreter, "-c", WHERE, shown=False).strip() for interpreter in (python, sys.executable))
    # A folder that a .pth file names is searched after the environment's own packages, and .pth files in it are not
    # read: one of these names the checkout, which has to stay out of reach.
    Path(own, "dependencies.pth").write_text(borrowed)
    call(*pip, "check")


def use(environment: Path, empty: Path) -> None:
    """List what there is, learn ten images a class, write the report, do what docs/adding.md prints."""
    python = environment / SCRIPTS / f"python{SUFFIX}"
    where = call(python, "-c", "import promptcl; print(promptcl.__file__)", folder=empty).strip()
    if not Path(where).resolve().is_relative_to(environment):
        sys.exit(f"error: promptcl was imported from {where}, not from the wheel")
    promptcl = environment / SCRIPTS / f"promptcl{SUFFIX}"
    listed = call(promptcl, "list", folder=empty).split()
    recipes = [path.stem for path in (ROOT / "src" / "promptcl" / "recipes").glob("*.yaml")]
    if unlisted := [name for name in recipes if name not in listed]:
        sys.exit(f"error: `promptcl list` does not name {', '.join(unlisted)}")
    few = ["data.train_per_class=10", "data.test_per_class=10"]
    call(promptcl, "train", "demo", *few, "--out", "run", "--quiet", folder=empty)
    call(promptcl, "report", "run", folder=empty)
    for name in ("results.json", "report.html"):
        if not (empty / "run" / name).is_file():
            sys.exit(f"error: run/{name} was not written")
    (empty / "own").mkdir()
    page = ROOT / "docs" / "adding.md"  # a method and a data set of one's own, as printed
    call(python, ROOT / "scripts" / "run_page.py", page, empty / "own", promptcl, folder=empty)
    written = {path.name for path in (empty / "own").iterdir()}
    if missing := {"mine.py", "means.py", "listed.py", "list.csv", "red-0.png", "runs"} - written:
        sys.exit(f"error: docs/adding.md did not write {', '.join(sorted(missing))}")


def call(*command: str | Path, folder: Path = ROOT, shown: bool = True) -> str:
    """What a command prints, which is shown too; nothing of the caller's path to packages is handed on."""
    if shown:
        print(f"$ {Path(command[0]).name} {' '.join(map(str, command[1:]))}", flush=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if shown and done.stdout:
        print(done.stdout.rstrip(), flush=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return done.stdout


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
