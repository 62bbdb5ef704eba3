"""Who may ask: hosts, origins and the token of a request, and what each answer says to browsers. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptcl.serve.limits import Refused

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; manifest-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
_LOCAL = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True)
class Guard:
    """Lets through what comes from whom the server is for, and refuses all else with one sentence."""

    app: ASGIApp
    host: str
    """The address that the server listens on."""
    token: str | None
    """What a request has to bring; None: nothing, which only a server of this machine allows."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application in front of another one."""

        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            # Where the rest of a body is no HTTP, its sender has been told so already.
            with contextlib.suppress(LocalProtocolError):
                await send(message)

        try:
            self._check(str(scope["path"]), Headers(scope=scope))
        except Refused as error:
            more = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            answer = JSONResponse({"error": str(error)}, error.status, {**more, "Connection": "close"})
            await answer(scope, receive, sent)
            return
        try:
            await self.app(scope, receive, sent)
        except asyncio.CancelledError:  # the server ends, and has waited long enough for the rest of this request
            if not begun:
                sentence = "this server ends, and the request was not complete; send it again later"
                await JSONResponse({"error": sentence}, 503, {"Connection": "close"})(scope, receive, sent)
            raise

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        found = _HOST.fullmatch(host)
        if found is None:
            raise Refused("the request names no host; send a header Host")
        name = found[1].strip("[]").lower().rstrip(".")
        # A name of somebody else's that was made to lead to this machine (DNS rebinding) is none of ours.
        if is_local(self.host) and name not in (*_LOCAL, self.host.lower()):
            raise Refused(f"this server is not {host[:100]}; write http://localhost:PORT", 421)
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            raise Refused("a page of another site may not use this server", 403)
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and path.startswith("/v1/"):
            raise Refused("a page of another site may not use this server", 403)
        if self.token is not None and path.startswith("/v1/") and path != "/v1/healthz":
            kind, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if kind.lower() != "bearer" or not right:
                raise Refused("this server asks for its token; send Authorization: Bearer TOKEN", 401)


def _host_of(origin: str) -> str:
    """Host and port of an origin, empty where it has none that can be read."""
    try:
        parts = urlsplit(origin)
        return parts.netloc.lower() if parts.scheme in ("http", "https") else ""
    except ValueError:
        return ""
