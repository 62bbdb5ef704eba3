"""What benchmarks/fuzz.py sends to `promptcl serve`: damaged HTTP requests to a real server, which may only say 4xx."""

from __future__ import annotations

import asyncio
import atexit
import functools
import io
import re
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import uvicorn
from PIL import Image

from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config
from promptcl.serve.house import House
from promptcl.serve.limits import Limits
from promptcl.serve.running import Address, settings

_WAIT = 0.03  # seconds; a request that is not complete is ended after two of them
_JSON = b"Content-Type: application/json\r\n"
_FORM = b"Content-Type: multipart/form-data; boundary=edge\r\n"


def _image(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "png")
    return buffer.getvalue()


def _request(line: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n".encode() if body else b""
    return line + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers + length + b"\r\n" + body


@functools.cache
def requests() -> list[bytes]:
    """A request of each kind, which is answered."""
    part = b'--edge\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    files = [part % (b"x", b'; filename="x.png"', _image(value)) for value in (10, 200)]
    learned = part % (b"class", b"", b"a") + files[0] + part % (b"class", b"", b"b") + files[1] + b"--edge--\r\n"
    parts = (b'{"old": "b", ', b'"new": "c d"}', b"")
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return [
        _request(b"GET /"),
        _request(b"GET /v1/learner", b"If-None-Match: *\r\n"),
        _request(b"GET /v1/openapi.json", b"Origin: http://localhost\r\n"),
        _request(b"POST /v1/predict?top=3&threshold=0.5", b"Content-Type: image/png\r\n", _image(9)),
        _request(b"POST /v1/predict?top=2", _FORM, b"".join(files) + b"--edge--\r\n"),
        _request(b"POST /v1/learn", _FORM, learned),
        _request(b"POST /v1/correct", _FORM, learned),
        _request(b"POST /v1/rename", _JSON, b'{"old": "a", "new": "b", "join": true}'),
        _request(b"POST /v1/rename", _JSON + b"Transfer-Encoding: chunked\r\n") + chunked,
        _request(b"POST /v1/undo", b"If-Match: *\r\n"),
        _request(b"POST /v1/forget", _JSON, b'{"classes": ["c d"]}'),
    ]


class _Server:
    """A server in threads of this process, with a new learner of a random small ViT."""

    def __init__(self) -> None:
        self.store = Path(tempfile.mkdtemp(prefix="fuzz-serve-"))
        small = ["backbone.name=test_vit", "backbone.weights=random", "backbone.image_size=32", "device=cpu"]
        learner = Learner(load_config("grow-demo", [*small, "backbone.kwargs={}"]))
        learner.learn([_image(value) for value in (20, 40, 100, 120)], ["a", "a", "b", "b"])
        learner.save(self.store)
        self.house = House(self.store, limits=Limits(idle_seconds=_WAIT))
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.server = uvicorn.Server(settings(self.house, Address()))
        serve = self.server.serve(sockets=[self.listening])
        self.thread = threading.Thread(target=asyncio.run, args=(serve,), daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.house.close()
        self.listening.close()
        shutil.rmtree(self.store, ignore_errors=True)


_servers: list[_Server] = []


def _server() -> _Server:
    """The server of this process, started at the first request."""
    if not _servers:
        _servers.append(_Server())
    return _servers[0]


@atexit.register
def end() -> None:
    """End the server and its threads, where one was started; another request starts another one."""
    while _servers:
        _servers.pop().end()


def ask(port: int, data: bytes, house: House) -> int | None:
    """Send bytes; the status of the answer, None where the connection ends without one, as when more was to come."""
    found, idle = b"", 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        connection.settimeout(_WAIT)
        while True:
            try:
                if not (more := connection.recv(65536)):
                    break
                found += more
            except TimeoutError:
                busy = house.budget.held or any(not job.ended for job in house.worker.jobs)
                idle = 0 if busy else idle + 1
                if idle == 2:  # a job that has just ended is told of a moment later
                    connection.shutdown(socket.SHUT_WR)
            except (ConnectionResetError, BrokenPipeError):
                break
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", found)
    return int(status[1]) if status else None


def read_request(data: bytes, folder: Path) -> object:
    """Send one request. Raises UserError where it is refused, RuntimeError where the server or a job of it failed."""
    server = _server()
    status = ask(server.port, data, server.house)
    if status is not None and status >= 500:
        raise RuntimeError(f"the server answered {status}")
    if failed := [job.error for job in server.house.worker.jobs if job.status >= 500]:
        raise RuntimeError(f"a job failed: {failed[0]}")
    if status is None or status >= 400:
        raise UserError(f"refused with {status}")
    return status
