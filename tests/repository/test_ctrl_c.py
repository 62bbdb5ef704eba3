"""Ctrl-C in a terminal, which every process in it gets: `python3 dev.py serve` ends, and nothing of it is left."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT

# As `python3 dev.py serve`, but with the environment of the tests and in a folder whose learner is there already.
CODE = """
import sys
from pathlib import Path
import dev
dev.ROOT, dev.VENV, dev.set_up = Path(sys.argv[1]), Path(sys.prefix), lambda venv: None
sys.exit(dev.main(["serve", "--port", "0"]))
"""
HALF = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nsome of it"


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command: object) -> None:
        """Start it."""
        self.keys, inside = pty.openpty()
        self.shown = b""

        def take() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in the background
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*map(str, command)],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}{os.pathsep}{ROOT}"},
            start_new_session=True,
            preexec_fn=take,
        )
        os.close(inside)

    def read(self, text: bytes | None) -> None:
        """Read what it shows until there is this text in it; None: until nothing has the terminal open any more."""
        while text is None or text not in self.shown:
            try:
                more = os.read(self.keys, 4096)
            except OSError:  # all have closed it
                more = b""
            if not more:
                assert text is None, self.shown
                return
            self.shown += more


@pytest.fixture
def terminal(store: Path, tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "serve_digits.py", tmp_path / "scripts")
    shutil.copytree(store, tmp_path / "runs" / "digits" / "digits")
    one = Terminal(sys.executable, "-c", CODE, tmp_path)
    yield one
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.process.pid, signal.SIGKILL)
    one.process.wait()
    os.close(one.keys)


@pytest.mark.slow
def test_ctrl_c_ends_dev_serve_while_others_wait_for_answers(terminal: Terminal) -> None:
    terminal.read(b"Ctrl-C ends it")
    found = re.search(rb"http://127\.0\.0\.1:(\d+)/", terminal.shown)
    assert found
    tab = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
    tab.request("GET", "/v1/learner")
    assert tab.getresponse().status == 200  # and the connection stays, as that of a browser does
    with socket.create_connection(("127.0.0.1", int(found[1])), timeout=60) as waiting:
        waiting.sendall(HALF)
        time.sleep(0.5)
        os.write(terminal.keys, b"\x03")
        answer = http.client.HTTPResponse(waiting)
        answer.begin()
        assert (answer.status, "ends" in json.loads(answer.read())["error"]) == (503, True)
    terminal.read(None)  # which also waits for whatever it has started
    assert terminal.process.wait(60) == 130
    assert terminal.shown.endswith(b"^Cinterrupted\r\n")
    tab.close()
