"""Start a server, tell its address, and end it cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import webbrowser
from dataclasses import dataclass
from types import FrameType
from urllib.parse import quote

import uvicorn

from promptcl.errors import UserError
from promptcl.serve.app import make_app
from promptcl.serve.guard import is_local
from promptcl.serve.house import House
from promptcl.serve.patience import timed

_SHORT = 16  # characters of the shortest token
_CONNECTIONS = 1000


@dataclass(frozen=True)
class Address:
    """Where a server listens, and what it asks of requests."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None


def checked(address: Address) -> Address:
    """The address, with a token that was made where one is needed. Raises UserError for one that is too weak."""
    token = address.token
    if token is None and not is_local(address.host):
        token = secrets.token_urlsafe(24)
    if token is not None and (len(token) < _SHORT or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(
            f"--token: expected at least {_SHORT} ASCII characters without spaces; leave it out to have one"
        )
    return Address(address.host, address.port, token)


def bound(address: Address) -> socket.socket:
    """A socket that listens there. Raises UserError where that cannot be."""
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address.host, address.port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{address.host}:{address.port} cannot be listened on ({error}); write another --port, or 0 for a free one"
        ) from error


def urls(address: Address, port: int) -> str:
    """The address of the page, with its token where it has one (a part that browsers do not send)."""
    everywhere = address.host in ("0.0.0.0", "::")
    name = socket.gethostname() if everywhere else f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{name}:{port}/" + (f"#token={quote(address.token, safe='')}" if address.token else "")


class _Server(uvicorn.Server):
    """A server that gives up what is being learned as soon as it is asked to end."""

    house: House

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As of uvicorn, which calls it for a signal."""
        self.house.worker.stop()
        super().handle_exit(sig, frame)


def settings(house: House, address: Address) -> uvicorn.Config:
    """How the server is run."""
    return uvicorn.Config(
        make_app(house, address.host, address.token),
        loop="asyncio",
        http=timed(house.limits.begin_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what senders do wrong is answered, and no news
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        limit_concurrency=_CONNECTIONS,
    )


def run(house: House, address: Address, listening: socket.socket, opens: bool = False) -> None:
    """Serve until a signal asks to end; opens: show the page in a browser."""
    server = _Server(settings(house, address))
    server.house = house
    if opens:
        page = urls(address, listening.getsockname()[1])
        threading.Timer(0.5, lambda: webbrowser.open(page)).start()
    with contextlib.closing(house):
        asyncio.run(server.serve(sockets=[listening]))
