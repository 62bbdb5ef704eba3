"""Files that are there whole or not at all: a JSON document and the tensors it names, written as one; and the lock.

The pair is a JSON file and `state-<hash>.safetensors`. The tensors are written first, under a name made of their
content; renaming the new JSON over the old one is the single moment at which the pair changes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from promptcl.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no lock, so two writers are not noticed there
    fcntl = None  # type: ignore[assignment]

_LARGEST_JSON = 2**26


class Kind(NamedTuple):
    """What a pair is, for messages; the newest format known; what to do about a damaged one."""

    name: str
    newest: int
    remedy: str


class Pair(NamedTuple):
    """A document, its tensors by name (on the CPU), and the checksum that stands for both."""

    document: dict[str, Any]
    tensors: dict[str, Tensor]
    checksum: str


class Absent(UserError):
    """There is no such pair."""


def write(path: Path, data: bytes) -> None:
    """Write the whole file or nothing: temporary file beside it, fsync, rename, fsync of the folder. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_pair(path: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Replace the pair whose JSON file is `path`, or leave it as it was; returns the new checksum.

    The caller holds the lock of the folder, which is made if it does not exist.
    Raises UserError where the folder cannot be written or the disk is full.
    """
    data = safetensors.torch.save({name: tensor.detach().cpu().clone() for name, tensor in sorted(tensors.items())})
    sha256 = hashlib.sha256(data).hexdigest()
    full = {**document, "state": {"sha256": sha256, "bytes": len(data)}}
    checksum = _checksum(full)
    with explained(path.parent):
        make_folder(path.parent)
        keep = _state_file(path, sha256)
        write(keep, data)
        write(path, _text({**full, "checksum": checksum}))
    _clean(path, keep)  # the new pair is in place
    return checksum


def remove_pair(path: Path) -> None:
    """Remove the pair whose JSON file is `path`, if there is one, and its folder if nothing else is in it.

    The JSON goes first: without it the tensors mean nothing.
    """
    with contextlib.suppress(OSError):
        path.unlink()
    _clean(path)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _clean(path: Path, keep: Path | None = None) -> None:
    """Remove what earlier writes of this pair left, except `keep`; what cannot be removed goes the next time."""
    patterns = (f"state-{'[0-9a-f]' * 16}.safetensors", ".state-*.tmp", f".{path.name}.*.tmp")
    with contextlib.suppress(OSError):
        for stale in [file for pattern in patterns for file in path.parent.glob(pattern)]:
            if stale != keep:
                stale.unlink(missing_ok=True)


def read_pair(path: Path, kind: Kind) -> Pair:
    """Read and check the pair whose JSON file is `path`.

    Raises Absent where there is none, UserError where it is damaged, of a newer format or cannot be read.
    """
    for _ in range(20):  # a writer may replace the pair, and remove its tensors, between our two reads
        document, text = read_json(path, kind)
        data = _read_state(path, document, kind)
        if data is not None:
            break
        if path.read_bytes() == text:
            raise _damaged(path, kind, f"its file {_state_file(path, document['state']['sha256']).name} is missing")
    else:
        raise UserError(f"{path.parent} is being rewritten all the time; try again when nothing writes to it")
    checksum = document.pop("checksum")
    state = document.pop("state")
    if len(data) != state["bytes"] or hashlib.sha256(data).hexdigest() != state["sha256"]:
        name = _state_file(path, state["sha256"]).name
        raise _damaged(path, kind, f"{name} is not what was written: {len(data)} bytes, expected {state['bytes']}")
    try:
        return Pair(document, safetensors.torch.load(data), checksum)
    except Exception as error:  # reachable only with a forged checksum; safetensors raises several types
        raise _damaged(path, kind, f"its tensors cannot be read: {error}") from error


def read_json(path: Path, kind: Kind) -> tuple[dict[str, Any], bytes]:
    """Document (with `state` and `checksum`) and the bytes it was read from; format and checksum are verified."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_JSON + 1)
    except FileNotFoundError:
        what = f"is not a {kind.name}: there is no {path.name} in it" if path.parent.is_dir() else "does not exist"
        raise Absent(f"{path.parent} {what}; expected the folder of a {kind.name}") from None
    except NotADirectoryError:
        raise Absent(f"{path.parent} is not a {kind.name}: expected a folder with {path.name}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
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
    # The text too: many a digit of a number can change without changing the number.
    if given != _checksum(body) or text != _text(document):
        raise _damaged(path, kind, f"{path.name} does not match its checksum")
    state = document.get("state")
    right = isinstance(state, dict) and type(state.get("bytes")) is int and isinstance(state.get("sha256"), str)
    if not right or not re.fullmatch("[0-9a-f]{64}", state["sha256"]):
        raise _damaged(path, kind, f"{path.name} does not say which tensors belong to it")
    return document, text


def make_folder(folder: Path) -> None:
    """Make `folder` so that it lasts through a power failure."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_folder(path.parent)


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


def _read_state(path: Path, document: dict[str, Any], kind: Kind) -> bytes | None:
    """Bytes of the tensors, None where the file is missing."""
    file = _state_file(path, document["state"]["sha256"])
    try:
        if (size := file.stat().st_size) != document["state"]["bytes"]:
            raise _damaged(path, kind, f"{file.name} has {size} bytes, expected {document['state']['bytes']}")
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error


def _state_file(path: Path, sha256: str) -> Path:
    return path.with_name(f"state-{sha256[:16]}.safetensors")


def _text(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _checksum(document: Mapping[str, Any]) -> str:
    # In the order of the file: the order of the classes of a task has a meaning.
    return hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()


def _damaged(path: Path, kind: Kind, why: str) -> UserError:
    return UserError(f"{path.parent} is a damaged {kind.name}: {why}; {kind.remedy}")


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure; Windows has no such call."""
    if os.name != "nt":
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
