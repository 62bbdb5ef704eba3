"""Write a JSON document together with its tensors, whole or not at all, and read them back checked.

Such a pair is a JSON file and a file `state-<hash>.safetensors`. The tensors are written first, under a name made of
their content; renaming the new JSON over the old one is the single moment at which the pair changes. A folder may hold
several pairs, such as `stage-0.json` and `stage-1.json`, which share a tensor file where their tensors are equal.

Tensors may be hundreds of megabytes: they are written, hashed and read without a second copy in memory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from promptcl.errors import UserError
from promptcl.runtime import disk
from promptcl.store import tensor_file

LARGEST_JSON = 2**26
"""Bytes of a document that are read, and so written."""
_MOST_VALUES = 5_000_000  # as many as fit, a line each


class Kind(NamedTuple):
    """A kind of file pair: its name in messages, its newest known format, and what to do about a damaged one."""

    name: str
    newest: int
    remedy: str


class Pair(NamedTuple):
    """A document, its tensors by name (on the CPU), and the checksum of both."""

    document: dict[str, Any]
    tensors: dict[str, Tensor]
    checksum: str


class Absent(UserError):
    """The document to read does not exist."""


def write_pair(path: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Replace the JSON file `path` and its tensors together, or leave both as they were; returns the new checksum.

    The caller holds the lock of the folder, which is made if it does not exist, and changes no tensor meanwhile.
    Raises UserError where the folder cannot be written or the disk is full.
    """
    state: dict[str, Any] = {}

    def fill(file: BinaryIO) -> Path:
        state.update(tensor_file.write_to(file, tensors))
        return _state_file(path, state["sha256"])

    _check_writable(path, document)
    with explained(path.parent):
        make_folder(path.parent)
        disk.write_whole(path.parent, fill, ".state-")
        full = {**document, "state": state}
        checksum = _checksum(full)
        disk.write(path, _text({**full, "checksum": checksum}), f".{path.name}.")
    _clean(path)  # only now, when the new pair is in place
    return checksum


def _check_writable(path: Path, document: Mapping[str, Any]) -> None:
    """Refuse a document that could not be read again. Raises UserError, and ValueError for what is no JSON."""
    longest = {"sha256": "0" * 64, "bytes": 2**63}
    text = _text({**document, "state": longest, "checksum": "0" * 64})
    if len(text) > LARGEST_JSON:
        raise UserError(
            f"{path} would have {len(text) >> 20:,} MiB and at most {LARGEST_JSON >> 20} are read, so it was not "
            "written; keep fewer notes, or begin another learner"
        )
    if _text(json.loads(text)) != text:
        raise ValueError(f"{path}: the document changes when it is read again, so it was not written")


def remove_pair(path: Path) -> None:
    """Remove the JSON file `path` and its tensors, if they are there, and their folder if nothing else is in it.

    The JSON goes first: without it the tensors mean nothing.
    """
    with contextlib.suppress(OSError):
        path.unlink()
    _clean(path)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _clean(path: Path) -> None:
    """Remove what earlier writes left beside the JSON file `path`; what cannot be removed is left to the next call.

    That is temporary files, and files of tensors that no JSON file of the folder names.
    """
    with contextlib.suppress(OSError):
        for pattern in (".state-*.tmp", f".{path.name}.*.tmp"):
            for left in list(path.parent.glob(pattern)):
                left.unlink(missing_ok=True)
        texts = _documents(path.parent)
        for state in list(path.parent.glob(f"state-{'[0-9a-f]' * 16}.safetensors")):
            if texts is not None and not any(state.stem[-16:].encode() in text for text in texts):
                state.unlink(missing_ok=True)


def _documents(folder: Path) -> list[bytes] | None:
    """Texts of the JSON files in `folder`; None if one is damaged or unreadable, as it might name any tensors."""
    texts = []
    try:
        for file in folder.glob("*.json"):
            if not file.is_file() or file.stat().st_size > LARGEST_JSON:
                continue  # not a document of ours
            texts.append(disk.read(file, LARGEST_JSON))
            document = json.loads(texts[-1])
            ours = isinstance(document, dict) and "checksum" in document
            if ours and document.pop("checksum") != _checksum(document):
                return None
    except (OSError, ValueError, RecursionError):
        return None
    return texts


def read_pair(path: Path, kind: Kind) -> Pair:
    """Read and check the pair whose JSON file is `path`.

    Raises Absent where there is none, UserError where it is damaged, of a newer format or cannot be read.
    """
    missing = 0
    for _ in range(20):  # a writer may replace the pair, and remove its tensors, between our two reads
        document, text = read_json(path, kind)
        checksum, state = document.pop("checksum"), document.pop("state")
        tensors = _read_state(path, state, kind)
        if tensors is not None:
            return Pair(document, tensors, checksum)
        missing += read_json(path, kind)[1] == text  # once may be a writer that came back to the same pair
        if missing == 3:
            raise _damaged(path, kind, f"its file {_state_file(path, state['sha256']).name} is missing")
    raise UserError(f"{path.parent} is being rewritten all the time; try again when nothing writes to it")


def read_json(path: Path, kind: Kind) -> tuple[dict[str, Any], bytes]:
    """Read and check a document; returns it (with `state` and `checksum`) and its bytes. Raises as `read_pair`."""
    try:
        text = disk.read(path, LARGEST_JSON)
    except FileNotFoundError:
        what = f"is not a {kind.name}: there is no {path.name} in it" if path.parent.is_dir() else "does not exist"
        raise Absent(f"{path.parent} {what}; expected the folder of a {kind.name}") from None
    except NotADirectoryError:
        raise Absent(f"{path.parent} is not a {kind.name}: expected a folder with {path.name}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if text.count(b",") + text.count(b"[") + text.count(b"{") > _MOST_VALUES:  # each takes more memory than bytes
        raise _damaged(path, kind, f"{path.name} holds more than {_MOST_VALUES:,} values")
    try:
        document = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, kind, f"{path.name} is not complete JSON") from error
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise _damaged(path, kind, f"{path.name} has no format number")
    if version > kind.newest:
        raise UserError(
            f"{path.parent} has format {version}, this promptcl reads up to {kind.newest}: "
            "install a newer promptcl (pip install -U promptcl)"
        )
    given = document.get("checksum")
    body = {key: value for key, value in document.items() if key != "checksum"}
    # The text is compared too, since a digit of a number can change without changing its value.
    if given != _checksum(body) or text != _text(document):
        raise _damaged(path, kind, f"{path.name} does not match its checksum")
    state = document.get("state")
    right = isinstance(state, dict) and type(state.get("bytes")) is int and isinstance(state.get("sha256"), str)
    if not right or not re.fullmatch("[0-9a-f]{64}", state["sha256"]):
        raise _damaged(path, kind, f"{path.name} does not say which tensors belong to it")
    return document, text


def make_folder(folder: Path) -> None:
    """Make `folder` so that it survives a power failure."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        disk.sync_folder(path.parent)


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an operating-system error while writing into a UserError."""
    try:
        yield
    except OSError as error:
        unchanged = "what was there before is unchanged"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no disk space left, free some and repeat"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"no permission ({error.strerror}), expected a folder that can be written"
        else:
            reason = error.strerror or str(error)
        raise UserError(f"{folder} could not be written: {reason}; {unchanged}") from error


def _read_state(path: Path, state: Mapping[str, Any], kind: Kind) -> dict[str, Tensor] | None:
    """The tensors that the document at `path` names, each in memory of its own; None where their file is missing.

    The file is opened twice, to check its hash and to load it. A writer may remove it in between, but whatever it
    puts there has the same name and so the same content.
    """
    file = _state_file(path, state["sha256"])
    try:
        size = disk.check(file)
        whole = size == state["bytes"] and tensor_file.sha256_of(file) == state["sha256"]
        tensors = tensor_file.load(file) if whole else {}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error
    except Exception as error:  # reachable only with a forged checksum; safetensors raises several types
        raise _damaged(path, kind, f"its tensors cannot be read: {error}") from error
    if not whole:
        raise _damaged(path, kind, f"{file.name} is not what was written: {size} bytes, expected {state['bytes']}")
    return tensors


def _state_file(path: Path, sha256: str) -> Path:
    return path.with_name(f"state-{sha256[:16]}.safetensors")


def _text(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _checksum(document: Mapping[str, Any]) -> str:
    # Keys stay in the order of the file, since the order of a task's classes has a meaning.
    return hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()


def _damaged(path: Path, kind: Kind, why: str) -> UserError:
    return UserError(f"{path.parent} is a damaged {kind.name}: {why}; {kind.remedy}")
