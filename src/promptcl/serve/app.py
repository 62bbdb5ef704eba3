"""The addresses of a server: the page and its files, and the interface under /v1."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from typing import Any

import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from promptcl.errors import UserError
from promptcl.serve import changes
from promptcl.serve.guard import Guard
from promptcl.serve.house import House
from promptcl.serve.jobs import Job
from promptcl.serve.limits import Refused
from promptcl.serve.standing import about
from promptcl.serve.uploads import read_images, read_small, release

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_TOP = 1000


def make_app(house: House, host: str, token: str | None) -> ASGIApp:
    """The application of a server that listens on `host`; token: what requests have to bring, None: nothing."""
    api = Api(house)
    routes = [
        Route("/v1/healthz", api.healthz),
        Route("/v1/openapi.json", api.openapi),
        Route("/v1/learner", api.learner),
        Route("/v1/predict", api.predict, methods=["POST"]),
        Route("/v1/learn", api.learn, methods=["POST"]),
        Route("/v1/correct", api.correct, methods=["POST"]),
        Route("/v1/forget", api.forget, methods=["POST"]),
        Route("/v1/rename", api.rename, methods=["POST"]),
        Route("/v1/undo", api.undo, methods=["POST"]),
        Route("/v1/jobs/{id:str}", api.job, methods=["GET", "DELETE"]),
        *page_routes(),
    ]
    handlers: Any = {UserError: _refused, HTTPException: _no_such, Exception: _bug}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, host, token)


def page_routes() -> list[Route]:
    """A route for each file of the page, `/` for its HTML; nothing else is ever read from the disk."""
    routes = []
    for file in sorted(resources.files("promptcl.serve").joinpath("page").iterdir(), key=lambda one: one.name):
        kind = _KINDS.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            routes.append(Route(path, _file(file.read_bytes(), kind)))
    return routes


def _file(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer


class Api:
    """The interface under /v1."""

    def __init__(self, house: House) -> None:
        """Answer from what `house` holds."""
        self.house = house
        text = resources.files("promptcl.serve").joinpath("openapi.yaml").read_text(encoding="utf-8")
        self._openapi = yaml.safe_load(text)
        self._openapi["info"]["version"] = version("promptcl")

    async def healthz(self, request: Request) -> Response:
        """Whether the server answers."""
        return JSONResponse({"state": "ok"})

    async def openapi(self, request: Request) -> Response:
        """The description of this interface."""
        return JSONResponse(self._openapi)

    async def learner(self, request: Request) -> Response:
        """What the learner knows."""
        house = self.house
        known = house.keeper.known
        headers = {"ETag": f'"{known.version}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        told = {**about(known, house.store), "read_only": house.read_only, "limits": asdict(house.limits)}
        return JSONResponse(told, headers=headers)

    async def predict(self, request: Request) -> Response:
        """Answer images."""
        top, threshold = _number(request, "top", 1, 1, _TOP), _share(request)
        house = self.house
        upload = await read_images(request, house.limits, house.budget, learns=False)
        try:
            return JSONResponse(await house.answer(upload, top, threshold))
        finally:
            release(upload, house.budget)

    async def learn(self, request: Request) -> Response:
        """Begin to learn images."""
        return await self._with_images(request, lambda upload: changes.learn(upload, self.house.store))

    async def correct(self, request: Request) -> Response:
        """Begin to give images another class."""
        return await self._with_images(request, changes.correct)

    async def forget(self, request: Request) -> Response:
        """Forget classes."""
        given = await self._json(request, {"classes": list})
        if not given["classes"] or not all(isinstance(name, str) for name in given["classes"]):
            raise Refused('expected {"classes": [names]}, at least one')
        return await self._submitted(request, changes.forget(given["classes"]))

    async def rename(self, request: Request) -> Response:
        """Give a class another name, or join two."""
        given = await self._json(request, {"old": str, "new": str}, {"join": bool})
        if not given["new"].strip():
            raise Refused("the new name is empty; write one")
        return await self._submitted(
            request, changes.rename(given["old"], given["new"].strip(), given.get("join", False))
        )

    async def undo(self, request: Request) -> Response:
        """Take away the last task."""
        await self._json(request, {})
        return await self._submitted(request, changes.undo())

    async def job(self, request: Request) -> Response:
        """How far a job is; with DELETE it is given up."""
        job = self.house.worker.find(request.path_params["id"])
        if request.method == "DELETE":
            self._writes()
            job.stop = True
        wait = _number(request, "wait", 0, 0, int(self.house.limits.wait_seconds))
        await self._ended(job, wait)
        return JSONResponse(job.told())

    def _writes(self) -> None:
        if self.house.read_only:
            raise Refused("this server only answers; it was started with --read-only", 403)

    async def _with_images(self, request: Request, make: Callable[[Any], Job]) -> Response:
        """Start the job that images in a form make."""
        self._writes()
        house = self.house
        upload = await read_images(request, house.limits, house.budget, learns=True)
        try:
            job = make(upload)
            job.release = lambda: release(upload, house.budget)
            self._start(request, job)
        except BaseException:
            release(upload, house.budget)
            raise
        return JSONResponse(job.told(), 202, {"Location": f"/v1/jobs/{job.id}"})

    async def _submitted(self, request: Request, job: Job) -> Response:
        """Start a job without images, which is short, and wait for it."""
        self._start(request, job)
        await self._ended(job, self.house.limits.wait_seconds)
        if job.state == "failed":
            raise Refused(job.error, job.status)
        return JSONResponse(job.told(), job.status, {"Location": f"/v1/jobs/{job.id}"})

    def _start(self, request: Request, job: Job) -> None:
        if (wanted := request.headers.get("if-match")) not in (None, "*"):
            job.version = str(wanted).strip('"')
        self.house.worker.submit(job)

    async def _ended(self, job: Job, seconds: float) -> None:
        """Wait for the end of a job, so long at most."""
        until = time.monotonic() + seconds
        while not job.ended and time.monotonic() < until and not self.house.worker.closing:
            await asyncio.sleep(0.02)

    async def _json(
        self, request: Request, fields: dict[str, type], more: dict[str, type] | None = None
    ) -> dict[str, Any]:
        """The JSON object of a request with these fields, and perhaps `more`. Raises Refused for anything else."""
        self._writes()
        body = await read_small(request, self.house.limits, self.house.budget)
        if not fields and not body:
            return {}
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused("expected a JSON object; send it with Content-Type: application/json", 415)
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused("the body is no JSON; expected an object") from None
        known = {**fields, **(more or {})}
        if not isinstance(given, dict) or not fields.keys() <= given.keys() <= known.keys():
            raise Refused(f"expected a JSON object with {', '.join(known) or 'no field'}")
        if wrong := next((key for key in given if not isinstance(given[key], known[key])), None):
            raise Refused(f"the field {wrong} is of another type than expected ({known[wrong].__name__})")
        return given


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number among the query. Raises Refused."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or len(given) > 9 or not least <= int(given) <= most:
        raise Refused(f"{name}={given[:20]!a}: expected a whole number from {least} to {most}")
    return int(given)


def _share(request: Request) -> float | None:
    """The threshold among the query. Raises Refused."""
    given = request.query_params.get("threshold")
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise Refused(f"threshold={given[:20]!a}: expected a probability from 0 to 1")
    return value


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refused) else 400
    more = {"Retry-After": "1"} if status == 429 else {}
    # What was not read of the body would be taken for the next request.
    return JSONResponse({"error": " ".join(str(error).split())}, status, {**more, "Connection": "close"})


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "no such address; /v1/openapi.json describes all"
    sentence = f"{request.method} is not allowed here" if error.status_code == 405 else known
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return JSONResponse({"error": f"the server failed ({type(error).__name__}); report this as a bug"}, 500)
