"""Methods and data sets in files of the working folder: found by name, and run only with --trust."""

from __future__ import annotations

import functools
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, TINY_VIT, start

METHOD = '''"""A method of its own: nearest class mean, by another name."""

from pathlib import Path

from promptcl.methods import ncm
from beside import NOTE

Path("ran.txt").write_text(NOTE)


class Model(ncm.Model):
    """Class means."""
'''
DATA = '''"""Two classes of noise around two grey values."""

from pathlib import Path

import numpy as np

from promptcl.config import DataConfig
from promptcl.data import ArraySource, ImageSet, Split

Path("ran.txt").write_text("data")


def load(config: DataConfig) -> Split:
    grey = np.repeat([60, 190, 120, 250], 6)
    pixels = grey[:, None, None] + np.random.RandomState(0).randint(-5, 5, (24, 32, 32))
    images = ImageSet(ArraySource(pixels.astype(np.uint8), "noise"), list("abcd"), np.repeat(range(4), 6))
    rows = np.arange(24)
    return Split(images.select(rows[rows % 6 < 4]), images.select(rows[rows % 6 >= 4]))
'''
SMALL = ["tasks=2", "device=cpu", "data.augment=none"]


def refused(*words: object, cwd: Path) -> str:
    done = start(*words, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def train(*words: object, cwd: Path) -> dict[str, object]:
    done = start("train", "demo", *SMALL, *words, "--quiet", cwd=cwd)
    assert done.returncode == 0, done.stderr
    results: dict[str, object] = json.loads((next(cwd.rglob("results.json"))).read_text())
    return results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "beside.py").write_text('NOTE = "method"\n')
    (tmp_path / "noise.py").write_text(DATA)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["method.name=mine", "data.name=noise", "method.name=a.mine", "data.name=a.noise"])
def test_without_trust_nothing_runs(folder: Path, setting: str) -> None:
    (folder / "a").mkdir()
    for name in ("mine", "noise"):
        (folder / "a" / f"{name}.py").write_text((folder / f"{name}.py").read_text())
    sentence = refused("train", "demo", setting, cwd=folder)
    assert setting in sentence
    assert "--trust" in sentence
    assert not (folder / "ran.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "code", "reason"),
    [
        ("method.name=empty", "", "a class Model"),
        ("data.name=empty", "", "a function load or load_domains"),
        ("method.name=broken", "x = 1\nmissing\n", "broken.py line 2: NameError: name 'missing' is not defined"),
        ("method.name=broken", "def f(:\n", "broken.py line 1: invalid syntax"),
        ("data.name=broken", "import nowhere_at_all\n", "No module named 'nowhere_at_all'"),
        ("method.name=pack.age", None, "No module named 'pack'"),
    ],
)
def test_a_wrong_module_is_one_sentence(tmp_path: Path, setting: str, code: str | None, reason: str) -> None:
    if code is not None:
        (tmp_path / f"{setting.partition('=')[2]}.py").write_text(code)
    sentence = refused("train", "demo", setting, "--trust", cwd=tmp_path)
    assert setting in sentence
    assert reason in sentence


@pytest.mark.slow
def test_an_unknown_name_says_where_a_file_would_be_found(tmp_path: Path) -> None:
    for setting, near in (("method.name=nmc", "ncm"), ("data.name=mnist", "mnist5k")):
        for trust in ([], ["--trust"]):
            sentence = refused("train", "demo", setting, *trust, cwd=tmp_path)
            name = setting.partition("=")[2]
            assert f"a file {name}.py in the current folder (used with --trust): did you mean {near}?" in sentence


@pytest.mark.slow
def test_a_name_inside_promptcl_wins(tmp_path: Path) -> None:
    (tmp_path / "ncm.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "mnist5k.py").write_text("raise SystemExit('ran')\n")
    results = train("method.name=ncm", "data.train_per_class=4", "data.test_per_class=2", cwd=tmp_path)
    assert results["scenario"] == "class"


@pytest.mark.slow
def test_a_run_and_its_learner_with_both_in_the_folder(folder: Path) -> None:
    results = train("method.name=mine", "data.name=noise", "--trust", "--out", "run", cwd=folder)
    assert results["average_accuracy"] == 100
    assert isinstance(results["config"], dict)
    assert results["config"]["method"]["name"] == "mine"
    store = Path("run") / "learner"
    (folder / "ran.txt").unlink()
    assert "--trust" in refused("info", store, cwd=folder)
    assert "--trust" in refused("train", "--resume", "run", cwd=folder)
    assert not (folder / "ran.txt").exists()
    assert "mine" in start("info", store, "--trust", cwd=folder).stdout
    again = start("train", "--resume", "run", "--trust", "--quiet", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "nothing was left to do" in again.stdout


@pytest.mark.slow
def test_the_line_that_goes_on_with_a_method_of_ones_own_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from promptcl.methods.linear import Model\n")
    settings = ["tasks=2", "data.train_per_class=8", "train.epochs=40", "train.checkpoint_steps=2", *TINY_VIT]
    process = subprocess.Popen(
        [sys.executable, "-m", "promptcl", "train", "demo", "method.name=mine", *settings, "--trust", "--quiet"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(tmp_path.glob("runs/*/learner/checkpoint/stage-0.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    line, last = process.communicate()[1].splitlines()
    assert (process.returncode, last) == (130, "interrupted")
    assert line == "go on with: promptcl train --trust --resume runs/demo-seed42"
    said = refused("train", "demo", "--trust", "--out", "runs/demo-seed42", cwd=tmp_path)
    assert "write promptcl train --trust --resume runs/demo-seed42, or another folder" in said
    done = start(*shlex.split(line.partition("promptcl ")[2]), "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_module_of_a_package(folder: Path) -> None:
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").write_text("")
    (folder / "mine.py").rename(folder / "shop" / "mine.py")
    (folder / "noise.py").rename(folder / "shop" / "noise.py")
    results = train("method.name=shop.mine", "data.name=shop.noise", "--trust", cwd=folder)
    assert results["average_accuracy"] == 100


def test_list_shows_what_is_inside_promptcl_only(folder: Path) -> None:
    for kind in ("methods", "datasets"):
        done = start("list", kind, cwd=folder)
        assert done.returncode == 0
        assert not {"mine", "noise", "beside"} & {line.split()[0] for line in done.stdout.splitlines()}
