"""The command as users run it: exit codes, one line on stderr, nothing half-written, what is shown."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import ENVIRONMENT, TINY_VIT, refused, start

from promptcl.cli.options import split_arguments
from promptcl.cli.train import claim_folder
from promptcl.errors import UserError


def test_help_and_version(tmp_path: Path) -> None:
    result = start("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "train" in result.stdout
    assert "list" in result.stdout
    assert re.fullmatch(r"promptcl \d+\.\d+\.\d+\n", start("--version", cwd=tmp_path).stdout)


def test_list(tmp_path: Path) -> None:
    assert re.search(r"^l2p +L2P", start("list", "recipes", cwd=tmp_path).stdout, re.M)
    everything = start("list", cwd=tmp_path).stdout
    assert all(word in everything for word in ("recipes:", "methods:", "datasets:", "ncm", "cifar100"))
    assert "did you mean datasets?" in refused("list", "dataset", cwd=tmp_path)
    assert max(map(len, everything.splitlines())) > 80  # one line each, for grep


@pytest.mark.slow
def test_list_fits_a_terminal(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "promptcl", "list"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, env={**ENVIRONMENT, "COLUMNS": "60"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # that is how a terminal ends
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    lines = shown.decode().splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == " ".join(start("list", cwd=tmp_path).stdout.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train.learning_rate=3"], "did you mean train.lr?"),
        (["demo", "train.epochs=0"], "expected a whole number greater than 0"),
        (["l2pp"], "did you mean l2p?"),
        (["demo", "l2p"], "expected one recipe and then key=value"),
        (["demo", "method.name=nmc"], "did you mean ncm?"),
        (["demo", "data.name=mnist"], "did you mean mnist5k?"),
        (["demo", f"method.name={300 * 'n'}"], "not one of the methods"),
        (["demo", f"data.name={300 * 'n'}", "--trust"], "not one of the datasets"),
        (["absent.yaml"], "absent.yaml"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(arguments: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refused("train", *arguments, cwd=tmp_path)


def test_out_that_holds_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text("{}")
    (tmp_path / "file").write_text("")
    assert "already holds results.json" in refused("train", "--out", "old", cwd=tmp_path)
    assert "it is a file" in refused("train", "--out", "file", cwd=tmp_path)


def test_unknown_option_exits_2(tmp_path: Path) -> None:
    result = start("train", "--quite", cwd=tmp_path)
    assert result.returncode == 2
    assert "--quiet" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_ctrl_c_exits_130_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "promptcl", "train", "demo", "--out", "run", "--quiet"]
    # A background job of a shell ignores Ctrl-C, and so would its children.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, preexec_fn=heed, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("l2p_ridge, mnist5k")  # so it learns, or is about to
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert process.returncode == 130


def test_default_folder_is_never_one_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert claim_folder("l2p", 42) == Path("runs/l2p-seed42")
    assert claim_folder("l2p", 42) == Path("runs/l2p-seed42-2")
    assert claim_folder("some/where/l2p.yaml", 42) == Path("runs/l2p-seed42-3")
    assert claim_folder("runs/l2p-seed42-2/config.yaml", 7) == Path("runs/l2p-seed7")
    Path("runs/l2p-seed42-4").symlink_to("nowhere")
    with ThreadPoolExecutor(8) as pool:  # nor one that another process is given at the same moment
        found = set(pool.map(lambda _: claim_folder("l2p", 42), range(20)))
    assert found == {Path(f"runs/l2p-seed42-{number}") for number in range(5, 25)}


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    assert "layers 0 to" in refused("train", "demo", "method.name=coda", "method.layers=[99]", *TINY_VIT, cwd=tmp_path)


def test_first_argument_is_the_recipe_unless_it_is_a_setting(tmp_path: Path) -> None:
    assert split_arguments([]) == ("demo", [])
    assert split_arguments(["seed=1"]) == ("demo", ["seed=1"])
    assert split_arguments(["l2p", "seed=1"]) == ("l2p", ["seed=1"])
    path = tmp_path / "lr=1.yaml"
    path.write_text("tasks: 2")
    assert split_arguments([str(path), "seed=1"]) == (str(path), ["seed=1"])
    with pytest.raises(UserError, match="expected one recipe"):
        split_arguments(["l2p", "seed"])
