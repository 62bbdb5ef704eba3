"""Streams that are closed, full or of another encoding, and signals: what a shell does to a command."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from helpers import ENVIRONMENT

from promptcl.cli.errors import one_sentence
from promptcl.cli.system import Terminated, heed_signals

PROMPTCL = f"{sys.executable} -m promptcl"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("PROMPTCL list >&-", 0, ""),
        ("PROMPTCL list <&- >&- 2>&-", 0, ""),
        ("PROMPTCL predict . - <&-", 2, "error: . is not a promptcl store"),
        ("PROMPTCL list | true; exit ${PIPESTATUS[0]}", 1, ""),
        ("PROMPTCL list >/dev/full", 2, "error: the output: no disk space left"),
        ("PROMPTCL info nothing >/dev/full", 2, "error: nothing does not exist"),
        (r"PYTHONIOENCODING=ascii PROMPTCL info $'\xe7\x8a\xac'", 2, r"error: \u72ac does not exist"),
        (r"PYTHONIOENCODING=cp1252 PROMPTCL info $'\xe7\x8a\xac\xff'", 2, r"error: \u72ac\udcff does not exist"),
        ("PROMPTCL info '~nosuchuser/x'", 2, "error: ~nosuchuser/x does not exist"),
    ],
)
def test_streams(line: str, status: int, said: str, tmp_path: Path) -> None:
    command = ["bash", "-c", line.replace("PROMPTCL", PROMPTCL)]
    environment = {**ENVIRONMENT, "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == status, result.stderr
    assert result.stderr.startswith(said)
    assert len(result.stderr.splitlines()) == bool(said)


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_signals_end_a_command_as_ctrl_c_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []

    @one_sentence
    def work(number: int) -> None:
        try:
            signal.raise_signal(number)
        finally:
            left.append(number)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    heed_signals()
    with pytest.raises(typer.Exit) as ended:
        work(signal.SIGTERM)
    assert ended.value.exit_code == 143
    assert capsys.readouterr().err == "interrupted\n"
    work(signal.SIGHUP)
    assert left == [signal.SIGTERM, signal.SIGHUP]

    @one_sentence
    def swallow() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as torch does it where numpy was being imported
            raise AttributeError("half of a module") from None

    with pytest.raises(typer.Exit) as ended:
        swallow()
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted\n"
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    heed_signals()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert issubclass(Terminated, KeyboardInterrupt)
