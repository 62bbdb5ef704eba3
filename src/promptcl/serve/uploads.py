"""Images in the body of a request: multipart forms and plain bytes, read within limits and kept in memory only."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from promptcl.data import FileSource, ImageSet
from promptcl.data.names import numbered
from promptcl.serve.limits import Budget, Limits, Refused

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what senders do wrong is answered, and no news
_FIELD = 1000  # bytes of a name or a field
_FIELDS = ("class", "task")


@dataclass(frozen=True)
class Sent:
    """An image as it was sent."""

    name: str
    """What its sender calls it."""
    data: bytes
    label: str | None
    """The class said before it; None: none was."""


@dataclass
class Upload:
    """What a request brought."""

    images: list[Sent] = field(default_factory=list)
    task: str | None = None
    """What the history is to call the task."""
    size: int = 0
    """Bytes that it holds of the budget."""


class Pixels(FileSource):
    """Encoded images in memory, which tells whenever one of them is looked at."""

    def __init__(self, names: list[str], contents: list[bytes], cache_mb: int, heard: Callable[[], None]) -> None:
        """names: one for each of `contents`, all different; heard: called before an image is read, may raise."""
        found = dict(zip(names, contents, strict=True))
        super().__init__(names, found.__getitem__, cache_mb=cache_mb)
        self._heard = heard

    def read(self, row: int) -> Tensor:
        """As of FileSource."""
        self._heard()
        return super().read(row)


def image_set(sent: list[Sent], cache_mb: int = 2048, heard: Callable[[], None] = lambda: None) -> ImageSet:
    """The images as a set, with their classes where each has one."""
    twice = Counter(one.name for one in sent)
    names = [f"{one.name} ({i + 1})" if twice[one.name] > 1 else one.name for i, one in enumerate(sent)]
    names = names if len(set(names)) == len(names) else [f"image {i + 1}" for i in range(len(sent))]
    source = Pixels(names, [one.data for one in sent], cache_mb, heard)
    labels = [one.label for one in sent if one.label is not None]
    if len(labels) < len(sent):
        return ImageSet(source, [""], np.zeros(len(sent), dtype=np.int64))
    return ImageSet(source, *numbered(labels))


async def read_images(request: Request, limits: Limits, budget: Budget, learns: bool) -> Upload:
    """Read the images of a request: a multipart form, or one image as it is. `release` the upload when it is done.

    learns: each file belongs to the class that the last field `class` before it has said.
    Raises Refused: nothing in it, too much, too slow, no form, an unknown field, a file without a class.
    """
    upload = Upload()
    try:
        most = limits.learn_bytes if learns else limits.ask_bytes
        kind, options = parse_options_header(request.headers.get("content-type"))
        chunks = _chunks(request, limits, budget, upload, most)
        if kind == b"multipart/form-data":
            await _read_form(options.get(b"boundary", b""), chunks, limits, learns, upload)
        elif learns:
            raise Refused("expected a multipart form: fields `class`, and after each the files of that class", 415)
        else:
            data = b"".join([chunk async for chunk in chunks])
            upload.images += [Sent("image", data, None)] if data else []
        if not upload.images:
            raise Refused("no image came with this request; send files as multipart/form-data, or one as the body")
    except BaseException:
        release(upload, budget)
        raise
    return upload


def release(upload: Upload, budget: Budget) -> None:
    """Give back what an upload holds of the budget."""
    budget.give(upload.size)
    upload.size = 0


async def read_small(request: Request, limits: Limits, budget: Budget) -> bytes:
    """Read a short body. Raises Refused as `read_images`."""
    upload = Upload()
    try:
        return b"".join([chunk async for chunk in _chunks(request, limits, budget, upload, limits.json_bytes)])
    finally:
        release(upload, budget)


async def _chunks(request: Request, limits: Limits, budget: Budget, upload: Upload, most: int) -> AsyncIterator[bytes]:
    """The parts of a body as they come."""
    too_long = Refused(f"this request is larger than {most >> 10:,} KiB; send less at once", 413)
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise Refused("Content-Length is no number")
    if int(length) > most:
        raise too_long
    stream, until = request.stream(), time.monotonic() + limits.body_seconds
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), min(limits.idle_seconds, until - time.monotonic()))
        except StopAsyncIteration:
            return
        except (asyncio.TimeoutError, ClientDisconnect):
            raise Refused("the request did not come to its end in time; send it again, or less at once", 408) from None
        if upload.size + len(chunk) > most:
            raise too_long
        budget.take(len(chunk))
        upload.size += len(chunk)
        yield chunk


async def _read_form(
    boundary: bytes, chunks: AsyncIterator[bytes], limits: Limits, learns: bool, upload: Upload
) -> None:
    """Fill `upload` from the parts of a multipart form."""
    form = _Form(upload, limits, learns)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers,
                "on_part_data": form.more,
                "on_part_end": form.end,
                "on_end": form.finish,
            },
        )
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except (MultipartParseError, ValueError) as error:
        raise Refused("the body is no multipart form that can be read; build it with a library") from error
    if not form.whole:
        raise Refused("the multipart form ends too early; send it again")


class _Form:
    """The parts of a multipart form as the parser finds them."""

    def __init__(self, upload: Upload, limits: Limits, learns: bool) -> None:
        self.upload, self.limits, self.learns, self.whole = upload, limits, learns, False
        self.label: str | None = None
        self.parts = 0
        self.begin()

    def begin(self) -> None:
        self.field, self.value, self.data = bytearray(), bytearray(), bytearray()
        self.disposition = b""
        self.name, self.file = "", None

    name: str
    file: str | None
    """What the sender calls the file; None: a field."""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self.field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def header_end(self) -> None:
        if bytes(self.field).lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.field, self.value = bytearray(), bytearray()

    def headers(self) -> None:
        self.parts += 1
        if self.parts > 2 * self.limits.learn_images + 2:
            raise Refused("this form has too many parts; send fewer at once", 413)
        _, options = parse_options_header(self.disposition)
        self.name = _text(options.get(b"name", b""), "the name of a field")
        self.file = _text(options[b"filename"], "the name of a file") if b"filename" in options else None
        allowed = _FIELDS if self.learns else ()
        if self.file is None and self.name not in allowed:
            raise Refused(f"unknown field {self.name[:40]!a}; expected files" + (", class or task" if allowed else ""))

    def more(self, data: bytes, start: int, end: int) -> None:
        most = _FIELD if self.file is None else self.limits.image_bytes
        if len(self.data) + end - start > most:
            what = "a field" if self.file is None else "an image"
            raise Refused(f"{what} of this form is larger than {most:,} bytes; send a smaller one", 413)
        self.data += data[start:end]

    def end(self) -> None:
        if self.file is None:
            said = _text(bytes(self.data), f"the field `{self.name}`").strip()
            if self.name == "class":
                self.label = said
            else:
                self.upload.task = said or None
            return
        if not self.file and not self.data:
            return  # a browser sends this for an input without files
        if self.learns and not self.label:
            raise Refused("a file came before any class; send a field `class` with the name before its files")
        most = self.limits.learn_images if self.learns else self.limits.ask_images
        if len(self.upload.images) == most:
            raise Refused(f"more than {most:,} images came at once; send fewer", 413)
        name = "".join(c if c.isprintable() else "?" for c in self.file[-200:]) or "image"
        self.upload.images.append(Sent(name, bytes(self.data), self.label))

    def finish(self) -> None:
        self.whole = True


def _text(data: bytes, what: str) -> str:
    """The text of a part. Raises Refused where it is none, or too long."""
    if len(data) > _FIELD:
        raise Refused(f"{what} is longer than {_FIELD} bytes; write a shorter one", 413)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(f"{what} is no UTF-8; send it as such") from None
