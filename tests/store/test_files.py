"""A pair of files is the old one or the new one: at every kill, at every power failure, on every full disk."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import after_operation, in_child

from promptcl.errors import UserError
from promptcl.store import files, tensor_file
from promptcl.store.lock import lock

KIND = files.Kind("thing", 1, "get another")
OLD, NEW = {"format": 1, "name": "old"}, {"format": 1, "name": "new"}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0, 4), "n": torch.tensor(3)}
TENSORS["long"] = torch.arange(3000.0)  # more than Python's buffer of a file: several writes


def put(folder: Path, document: dict[str, Any], scale: float) -> str:
    return files.write_pair(folder / "thing.json", document, {k: v * scale for k, v in TENSORS.items()})


def name_in(folder: Path) -> str:
    """`old` or `new`, with the tensors that belong to it."""
    pair = files.read_pair(folder / "thing.json", KIND)
    name = str(pair.document["name"])
    scale = {"old": 1, "new": 2}[name]
    assert all(torch.equal(pair.tensors[key], value * scale) for key, value in TENSORS.items())
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "things", OLD, 1)
    return tmp_path / "things"


def test_what_is_written_is_read_and_what_was_there_is_gone(folder: Path) -> None:
    assert name_in(folder) == "old"
    (folder / ".thing.json.1.tmp").write_text("left by a process that was killed")
    checksum = put(folder, NEW, 2)
    pair = files.read_pair(folder / "thing.json", KIND)
    assert pair.checksum == checksum
    assert pair.document == NEW
    assert len(list(folder.iterdir())) == 2


def test_killed_before_each_operation_of_a_write(folder: Path, tmp_path: Path) -> None:
    def victim(place: Path, number: int) -> None:
        after_operation(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        put(place, NEW, 2)

    files.write_pair(folder / "neighbour.json", OLD, {"x": torch.ones(3)})
    found, cut = [], False
    for number in itertools.count(1):
        place = tmp_path / f"killed{number}"
        shutil.copytree(folder, place)
        if in_child(lambda place=place, number=number: victim(place, number)) == "done":  # type: ignore[misc]
            break
        found.append(name_in(place))
        cut = cut or any(0 < path.stat().st_size < 12000 for path in place.glob(".state-*.tmp"))
        put(place, NEW, 2)  # the next writer is not disturbed by what is left, and removes it
        assert name_in(place) == "new"
        assert files.read_pair(place / "neighbour.json", KIND).tensors["x"].tolist() == [1, 1, 1]
        assert len(list(place.iterdir())) == 4
    assert found == sorted(found, reverse=True)  # old, ..., old, new, ..., new: one moment
    assert found.count("old") >= 11
    assert found.count("new") >= 2
    assert cut


def test_an_error_at_each_operation_is_a_sentence_and_leaves_one_of_the_two(folder: Path, tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def victim(place: Path, number: int) -> None:
        after_operation(number, full)
        put(place, NEW, 2)

    found = []
    for number in itertools.count(1):
        place = tmp_path / f"full{number}"
        shutil.copytree(folder, place)
        said = in_child(lambda place=place, number=number: victim(place, number))  # type: ignore[misc]
        if said == "done":  # only what removes the old tensors is left
            break
        assert "no disk space left" in said
        found.append(name_in(place))
    assert found == sorted(found, reverse=True)
    assert found.count("old") >= 11


def test_power_failure_at_each_operation_of_a_write(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not synced may or may not be on the disk: contents after their fsync, renames after their folder's."""
    disk = {path.name: path.read_bytes() for path in folder.iterdir()}
    contents: dict[str, bytes] = {}
    pending: list[tuple[str, str]] = []
    possible: list[dict[str, bytes]] = []
    sync, replace, unlink = os.fsync, os.replace, Path.unlink

    def outcome(happened: tuple[tuple[str, str], ...]) -> dict[str, bytes]:
        files = dict(disk)
        for source, target in happened:
            if target:
                files[target] = contents.get(source, b"")
            else:
                files.pop(source, None)
        return files

    def crash() -> None:
        for size in range(len(pending) + 1):
            possible.extend(outcome(happened) for happened in itertools.combinations(pending, size))

    def on_sync(file: int) -> None:
        crash()
        sync(file)
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.is_dir():
            disk.update(outcome(tuple(pending)))
            for source, target in pending:
                if not target:
                    disk.pop(source, None)
            pending.clear()
        else:
            contents[path.name] = path.read_bytes()
        crash()

    def on_replace(source: Path, target: Path) -> None:
        replace(source, target)
        pending.append((source.name, target.name))
        crash()

    def on_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            pending.append((path.name, ""))
        unlink(path, missing_ok=missing_ok)
        crash()

    monkeypatch.setattr(os, "fsync", on_sync)
    monkeypatch.setattr(os, "replace", on_replace)
    monkeypatch.setattr(Path, "unlink", on_unlink)
    put(folder, NEW, 2)
    monkeypatch.undo()
    names = []
    for number, present in enumerate(possible):
        place = tmp_path / f"disk{number}"
        place.mkdir()
        for name, data in present.items():
            (place / name).write_bytes(data)
        names.append(name_in(place))
    assert {"old", "new"} == set(names)
    assert len(names) > 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounts")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full(small_disk: Path) -> None:
    folder = small_disk / "things"
    put(folder, OLD, 1)
    big = {"a": torch.zeros(1 << 16)}
    with pytest.raises(UserError, match="no disk space left, free some and repeat; what was there before is unchanged"):
        files.write_pair(folder / "thing.json", NEW, big)
    assert name_in(folder) == "old"
    assert len(list(folder.iterdir())) == 2
    put(folder, NEW, 2)
    assert name_in(folder) == "new"


def test_a_disk_mounted_read_only(small_disk: Path) -> None:
    folder = small_disk / "things"
    put(folder, OLD, 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match="no permission"):
        put(folder, NEW, 2)
    with pytest.raises(UserError, match="no permission"), lock(folder):
        pass
    assert name_in(folder) == "old"


def test_a_limit_on_the_size_of_files(folder: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        files.write_pair(folder / "thing.json", NEW, {"a": torch.zeros(1 << 16)})

    assert "could not be written: File too large" in in_child(limited)
    assert name_in(folder) == "old"
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_may_not_be_written() -> None:
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        put(place / "things", OLD, 1)
        place.chmod(0o755)
        (place / "things").chmod(0o555)

        def stranger() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            assert name_in(place / "things") == "old"
            put(place / "things", NEW, 2)

        assert "no permission (Permission denied), expected a folder that can be written" in in_child(stranger)
        assert name_in(place / "things") == "old"
    finally:
        (place / "things").chmod(0o755)
        shutil.rmtree(place)


def test_a_reader_meets_a_writer(folder: Path) -> None:
    """Many reads while another process replaces the pair all the time: each is whole."""

    def writer() -> None:
        while True:
            put(folder, NEW, 2)
            put(folder, OLD, 1)

    child = os.fork()
    if child == 0:
        with lock(folder):  # reading needs no lock
            writer()
    try:
        seen = {name_in(folder) for _ in range(300)}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen <= {"old", "new"}


def test_a_reader_whose_tensors_are_removed_between_hash_and_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tensor_file.load

    def late(path: Path) -> dict[str, torch.Tensor]:
        put(folder, NEW, 2)
        return real(path)

    monkeypatch.setattr(tensor_file, "load", late)
    assert name_in(folder) == "new"
