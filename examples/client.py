"""Have a running `promptcl serve` learn a folder of classes, then ask it about one image of each; nothing but Python.

Command: python examples/client.py http://127.0.0.1:8765/ FOLDER     (FOLDER/CLASS/*.png, as `promptcl learn` takes it)
"""

from __future__ import annotations

import json
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any


def call(url: str, path: str, parts: list[tuple[str, str, bytes]] | None = None) -> Any:
    """Send a GET, or a form of parts (name, file or "" for a field, content); the JSON of the answer."""
    edge, body = uuid.uuid4().hex, b""
    for name, file, content in parts or []:
        more = f'; filename="{file}"' if file else ""
        body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}"} if parts else {}
    body += f"--{edge}--\r\n".encode()
    request = urllib.request.Request(url.rstrip("/") + path, body if parts else None, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main(url: str, folder: Path) -> None:
    """Learn, wait, ask."""
    classes = {one.name: sorted(one.iterdir()) for one in sorted(folder.iterdir())}
    parts = [("task", "", folder.name.encode())]
    for name, files in classes.items():  # a field `class`, then the files of that class
        parts += [("class", "", name.encode()), *(("images", file.name, file.read_bytes()) for file in files)]
    job = call(url, "/v1/learn", parts)
    while job["state"] in ("waiting", "running"):
        job = call(url, f"/v1/jobs/{job['id']}?wait=30")
    print(job.get("error") or f"learned {job['result']['learned']} images, {job['result']['known']} were known")
    asked = [files[0] for files in classes.values()]
    found = call(url, "/v1/predict?top=2", [("images", file.name, file.read_bytes()) for file in asked])
    for file, answer in zip(asked, found["answers"], strict=True):
        print(f"{file}: {answer['label']}, {100 * answer['probability']:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
