"""A server of `promptcl serve` in a process of its own, and who asks it: for benchmarks/serve.py."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from promptcl.serve import running
from promptcl.serve.house import House

Part = tuple[str, str, bytes]


class Client:
    """Sends requests to a server."""

    def __init__(self, port: int) -> None:
        """port: where it listens on this machine."""
        self.port = port

    def send(self, method: str, path: str, body: bytes = b"", kind: str = "image/png") -> Any:
        """One request on a connection of its own; the JSON of an answer that went well."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{answer.status}: {content!r}")
        return json.loads(content)

    def get(self, path: str) -> Any:
        """A GET."""
        return self.send("GET", path)

    def learn(self, parts: list[Part]) -> dict[str, Any]:
        """Begin to learn."""
        body = b"".join(
            f'--edge\r\nContent-Disposition: form-data; name="{name}"{file and f"; filename={file}"}\r\n\r\n'.encode()
            + content
            + b"\r\n"
            for name, file, content in parts
        )
        job: dict[str, Any] = self.send(
            "POST", "/v1/learn", body + b"--edge--\r\n", "multipart/form-data; boundary=edge"
        )
        return job

    def finish(self, job: dict[str, Any]) -> dict[str, Any]:
        """Wait for the end of a job."""
        while job["state"] in ("waiting", "running"):
            job = self.get(f"/v1/jobs/{job['id']}?wait=30")
        if job["state"] != "done":
            raise RuntimeError(job["error"])
        result: dict[str, Any] = job["result"]
        return result


class Server(Client):
    """`promptcl serve` in a process of its own."""

    def __init__(self, store: Path) -> None:
        """Start it and wait for its first answer."""
        start = time.perf_counter()
        command = [sys.executable, "-m", "promptcl", "serve", str(store), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        found = re.search(r":(\d+)/", "".join(self.process.stdout.readline() for _ in range(3)))
        assert found is not None
        super().__init__(int(found[1]))
        self.get("/v1/learner")
        self.seconds = time.perf_counter() - start

    def resident(self) -> int:
        """Bytes of its memory that are in RAM."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def end(self) -> None:
        """End it by a signal."""
        self.process.terminate()
        self.process.communicate()


class Victim(Client):
    """A server in a forked process, which starts in less than a second; this one must run nothing in parallel."""

    def __init__(self, store: Path) -> None:
        """Start it and wait for its first answer."""
        with running.bound(running.Address(port=0)) as listening:
            super().__init__(listening.getsockname()[1])
            self.process = os.fork()
            if self.process == 0:
                running.run(House(store), running.Address(), listening)
                os._exit(0)
        self.get("/v1/learner")

    def kill(self) -> None:
        """End it by SIGKILL."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
