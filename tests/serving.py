"""A server as tests see it: real requests to a real uvicorn, in a thread of this process or in one of its own."""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from helpers import ENVIRONMENT

from promptcl.learner.learner import Learner
from promptcl.serve.house import House
from promptcl.serve.jobs import Job
from promptcl.serve.limits import Limits
from promptcl.serve.running import Address, settings

Part = tuple[str, str | None, bytes]
"""Name of a field, name of a file (None: no file), content."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of a refusal, which has nothing else."""
        (sentence,) = self.json.values()
        assert list(self.json) == ["error"]
        assert isinstance(sentence, str)
        return sentence


@dataclass
class Client:
    """Sends requests to one server."""

    port: int
    headers: dict[str, str]

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own; `_` in names of headers stands for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {**self.headers, **given})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, **headers)

    def post_json(self, path: str, value: Any, **headers: str) -> Answer:
        return self.send("POST", path, json.dumps(value), **{"Content_Type": "application/json", **headers})

    def post_form(self, path: str, parts: Iterable[Part], **headers: str) -> Answer:
        kind, body = form(parts)
        return self.send("POST", path, body, **{"Content_Type": kind, **headers})

    def job(self, answer: Answer) -> dict[str, Any]:
        """The job that an answer began, once it has ended."""
        assert answer.status == 202, answer.body
        for _ in range(8):
            found: dict[str, Any] = self.get(f"/v1/jobs/{answer.json['id']}?wait=15").json
            if found["state"] in ("done", "failed"):
                return found
        raise AssertionError(found)

    def done(self, answer: Answer) -> dict[str, Any]:
        """The result of a job that went well."""
        job = self.job(answer) if answer.status == 202 else answer.json
        assert job["state"] == "done", job
        result: dict[str, Any] = job["result"]
        return result


def form(parts: Iterable[Part]) -> tuple[str, bytes]:
    """Content type and body of a multipart form."""
    edge, body = "edge-of-a-part", b""
    for name, file, content in parts:
        more = "" if file is None else f'; filename="{file}"'
        body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
    return f"multipart/form-data; boundary={edge}", body + f"--{edge}--\r\n".encode()


def labelled(folder: Path, most: int | None = None) -> list[Part]:
    """The parts by which the images of a folder of classes are learned."""
    parts: list[Part] = []
    for one in sorted(folder.iterdir()):
        parts.append(("class", None, one.name.encode()))
        parts += [("images", file.name, file.read_bytes()) for file in sorted(one.iterdir())[:most]]
    return parts


@contextmanager
def served(
    store: Path,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    read_only: bool = False,
    limits: Limits | None = None,
    port: int = 0,
) -> Iterator[tuple[Client, House]]:
    """A server in a thread. host: what it is told to listen on, though it listens on 127.0.0.1 in any case."""
    house = House(store, [], read_only=read_only, limits=limits)
    listening = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(settings(house, Address(host, 0, token)))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        yield Client(listening.getsockname()[1], headers), house
    finally:
        server.should_exit = True
        thread.join()
        house.close()
        listening.close()


def busy(house: House) -> threading.Event:
    """Keep the changes of a server waiting until the event is set."""
    hold = threading.Event()

    def wait(learner: Learner, job: Job) -> dict[str, Any]:
        assert hold.wait(60)
        return {"unchanged": True}

    house.worker.submit(Job("wait", wait))
    return hold


class Process:
    """`promptcl serve` in a process of its own."""

    def __init__(self, store: Path, *words: object) -> None:
        """Start it and wait until it listens."""
        command = [sys.executable, "-m", "promptcl", "serve", str(store), "--port", "0", *map(str, words)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in the background
        )
        assert self.process.stdout is not None
        self.said = [self.process.stdout.readline() for _ in range(3)]
        assert self.said[1].startswith("open http"), [*self.said, self.end(signal.SIGKILL)]
        self.url = self.said[1].split()[1]
        self.client = Client(int(self.url.split(":")[2].partition("/")[0]), {})

    def end(self, number: int) -> tuple[int, str]:
        """End it by a signal; its exit code and what it said on stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextmanager
def started(store: Path, *words: object) -> Iterator[Process]:
    """A process that is killed at the end, if it has not ended by then."""
    one = Process(store, *words)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


def copied(store: Path, folder: Path) -> Path:
    """A copy of a store that may be written to."""
    shutil.copytree(store, folder)
    return folder


def resident(process: int | None = None) -> int:
    """Bytes of memory of a process, of this one if none is given, that are in RAM."""
    pages = Path(f"/proc/{process or 'self'}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def until(condition: Any, seconds: float = 30) -> None:
    """Wait until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
