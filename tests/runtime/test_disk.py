"""Files of strangers are looked at before they are read, and what is written is there whole, under a new name."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from promptcl.runtime import disk

MIB = 2**20


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def sparse(path: Path) -> None:
    """A terabyte, of which a few bytes are there."""
    with path.open("wb") as file:
        file.write(b"\x89PNG")
        file.seek(MIB)
        file.write(b"x")
        file.truncate(2**40)


def large(path: Path) -> None:
    path.write_bytes(bytes(2 * MIB))


REFUSED: list[tuple[Callable[[Path], object], int, str]] = [
    (pipe, MIB, "it is a pipe, expected a plain file"),
    (link_to_zero, MIB, "it is a device, expected a plain file"),
    (link_to_itself, MIB, "Too many levels of symbolic links"),
    (listening, MIB, "it is a socket, expected a plain file"),
    (Path.mkdir, MIB, "Is a directory"),
    (large, MIB, "it is larger than 1 MiB, the most that is read"),
    (sparse, 2**42, "it is mostly holes"),
]


@pytest.mark.parametrize(("make", "most", "reason"), REFUSED)
def test_what_is_no_whole_file_is_refused_before_it_is_read(
    make: Callable[[Path], object], most: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(Path("file"))
    for look in (disk.check, disk.read):
        with pytest.raises(OSError, match=re.escape(reason)) as caught:
            look("file", most)
        assert caught.value.strerror is not None


def test_what_is_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * MIB)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert disk.read(tmp_path / "link", 3 * MIB) == b"abc" * MIB
    assert disk.check(tmp_path / "file") == 3 * MIB
    assert disk.read("/proc/self/stat", MIB).startswith(str(os.getpid()).encode())  # which says it has 0 bytes
    with pytest.raises(OSError, match="it is larger than 16 bytes"):
        disk.read("/proc/self/status", 16)


def test_a_file_with_some_holes_is_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(range(256)) * 2**13)  # 2 MiB of 80
        file.truncate(80 * MIB)
    assert disk.check(tmp_path / "file") == 80 * MIB


def test_a_home_that_does_not_exist_stays_as_it_is_written() -> None:
    assert disk.expanded("~nosuchuser/x") == Path("~nosuchuser/x")
    assert disk.expanded("~/x") == Path.home() / "x"


def test_links_are_replaced_and_temporary_files_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "file").symlink_to(victim)
    disk.write(tmp_path / "file", b"new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "file").read_bytes() == b"new"
    monkeypatch.setattr(secrets, "token_hex", lambda size: "known")
    (tmp_path / ".known.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        disk.write(tmp_path / "file", b"other")
    assert victim.read_text() == "precious"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_several_files_are_there_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [tmp_path / name for name in "abc"]
    disk.write_all({name: b"old" for name in names})
    names[2].unlink()
    names[2].mkdir()
    with pytest.raises(IsADirectoryError):
        disk.write_all({name: b"new" for name in names})
    names[2].rmdir()
    left = 2
    sync = os.fsync

    def full(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk.write_all({name: b"new" for name in names})
    assert [name.read_bytes() for name in names[:2]] == [b"old", b"old"]
    assert sorted(tmp_path.iterdir()) == names[:2]


@pytest.mark.parametrize("writer", [disk.write, lambda path, data: disk.write_all({path: data})])
def test_an_error_names_the_file_that_was_wanted(writer: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory") as refused:
        writer(tmp_path / "gone" / "page.html", b"x")
    assert refused.value.filename == str(tmp_path / "gone" / "page.html")
