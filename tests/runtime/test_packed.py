"""Archives that claim far more than they are, or hold too many files, are refused before they are listed."""

from __future__ import annotations

import io
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from promptcl.backbone import weights
from promptcl.data.archive import open_tree
from promptcl.errors import UserError
from promptcl.runtime import packed

MIB = 2**20


def zip_of(count: int) -> bytes:
    """A zip of empty files, made of the same few bytes again and again: zipfile would take half a minute."""
    name = b"a/0.png"
    head = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0) + name
    place = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0)
    entries = (place + name) * count
    far = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(entries), len(head))
    far += struct.pack("<4sIQI", b"PK\6\7", 0, len(head) + len(entries), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return head + entries + far + end


def tar_of(count: int) -> bytes:
    return tarfile.TarInfo("a/0.png").tobuf(tarfile.GNU_FORMAT) * count + bytes(10240)


@pytest.mark.parametrize(("name", "make"), [("a.zip", zip_of), ("a.tar", tar_of)])
def test_too_many_files(name: str, make: object, tmp_path: Path) -> None:
    assert callable(make)
    (tmp_path / name).write_bytes(make(300_000))
    began = time.process_time()
    with pytest.raises(UserError, match=r"holds more than 250,000 files; unpack it and give the folder"):
        open_tree(tmp_path / name)
    assert time.process_time() - began < 3
    (tmp_path / name).write_bytes(make(1000))
    assert open_tree(tmp_path / name).paths == ["a/0.png"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_are_added_up(method: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LARGE", MIB)
    file = tmp_path / "a.zip"
    for before in (b"", b"#!/bin/sh\n"):  # a zip may stand behind something else
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for number in range(3):
                archive.writestr(f"c/{number}.png", bytes(MIB))
            archive.comment = b"x" * 100
        file.write_bytes(before + buffer.getvalue())
        if method == zipfile.ZIP_STORED:
            packed.check_zip(file)
            continue
        with pytest.raises(UserError, match="unpacks to 3 MiB, more than 100 times its size; pack it again"):
            packed.check_zip(file)
    file.write_bytes(b"no zip at all")
    packed.check_zip(file)


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_weights_are_no_bombs(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LARGE", MIB)
    file = tmp_path / f"vit{suffix}"
    if suffix == ".npz":
        np.savez_compressed(file, cls=np.zeros((1, MIB)))
    else:
        torch.save({"cls_token": torch.zeros(1, MIB)}, tmp_path / "plain")
        with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for info in plain.infolist():
                archive.writestr(info.filename, plain.read(info))
    with pytest.raises(UserError, match="more than 100 times its size"):
        weights.locate(str(file), "test_vit", None)
