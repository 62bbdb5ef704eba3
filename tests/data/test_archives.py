"""Members of archives: links, what cannot be unpacked, and names in the encodings of old systems."""

from __future__ import annotations

import io
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

import pytest
from helpers import grey

from promptcl.data import archive, links
from promptcl.data.archive import open_tree
from promptcl.data.inputs import labelled
from promptcl.errors import UserError

LINKS = {
    "cup/again.png": "0.png",
    "cup/other.png": "../plate/./0.png",
    "mug": "cup",
    "cup/chain.png": "again.png",
    "cup/through.png": "../mug/0.png",
}
OUTSIDE = {
    "cup/out.png": "../../secret.png",
    "cup/absolute.png": "/etc/passwd",
    "cup/gone.png": "missing.png",
    "cup/circle.png": "circle.png",
    "cup/empty.png": "",
}
FILES = {"cup/0.png": grey(1), "plate/0.png": grey(2)}


def tar_of(file: Path, symbolic: dict[str, str], hard: dict[str, str] | None = None) -> Path:
    with tarfile.open(file, "w:gz" if file.suffix == ".tgz" else "w") as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind, found in ((tarfile.SYMTYPE, symbolic), (tarfile.LNKTYPE, hard or {})):
            for name, target in found.items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                tar.addfile(info)
    return file


def zip_of(file: Path, symbolic: dict[str, str]) -> Path:
    with zipfile.ZipFile(file, "w") as packed:
        for name, data in FILES.items():
            packed.writestr(name, data)
        for name, target in symbolic.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            packed.writestr(info, target)
    return file


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".zip"])
def test_links_that_point_inside_are_read_and_others_counted(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"set{ending}"
    everything = LINKS | OUTSIDE | {"cup/back": "..", "plate/self": "."}
    found = labelled(zip_of(file, everything) if ending == ".zip" else tar_of(file, everything))
    assert found.classes == ("cup", "mug", "plate")
    names = [found.name(i).removeprefix(f"{file}/") for i in range(len(found))]
    cup = ["cup/0.png", "cup/again.png", "cup/chain.png", "cup/other.png", "cup/through.png"]
    assert names == [*cup, "mug/0.png", "plate/0.png"]
    assert [int(found.image(i)[0, 0, 0]) for i in range(len(found))] == [1, 1, 1, 2, 1, 1, 2]
    assert found.notes == (f"5 files in {file} left out: 5 linked to what is not in the archive",)


def test_hard_links_count_from_the_top(tmp_path: Path) -> None:
    found = labelled(tar_of(tmp_path / "set.tar", {}, {"cup/hard.png": "./plate/0.png", "cup/none.png": "0.png"}))
    assert [int(found.image(i)[0, 0, 0]) for i in range(len(found))] == [1, 2, 2]
    assert found.notes[0].endswith("1 linked to what is not in the archive")


def test_links_do_not_multiply_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_LINKED", 3)
    assert len(labelled(tar_of(tmp_path / "few.tar", {"a": "cup", "b": "cup", "c": "cup"}))) == 5
    with pytest.raises(UserError, match=r"the links in the archive .* add more than 3 files"):
        labelled(tar_of(tmp_path / "many.tar", {name: "cup" for name in "abcd"}))


def test_what_cannot_be_unpacked_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "set.zip"
    with zipfile.ZipFile(file, "w") as packed:
        for name in ("a", "b", "c", "d", "e"):
            packed.writestr(f"cup/{name}.png", grey(ord(name)))
    data = bytearray(file.read_bytes())
    for name, (offset, value) in {
        "b": (8, 1),
        "c": (8, 1),
        "d": (10, 99),
    }.items():  # flag: encrypted; method: none known
        at = data.rindex(f"cup/{name}.png".encode()) - 46
        data[at + offset : at + offset + 2] = struct.pack("<H", value)
    file.write_bytes(data)
    found = labelled(file)
    assert len(found) == 2
    assert found.notes == (f"3 files in {file} left out: 2 encrypted, 1 in a compression that is not known here",)
    fifo = tmp_path / "set.tar"
    tar_of(fifo, {})
    with tarfile.open(fifo, "a") as tar:
        info = tarfile.TarInfo("cup/pipe.png")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    assert labelled(fifo).notes == (f"1 file in {fifo} left out: 1 of a special kind",)


def zip_with_names(file: Path, names: list[bytes], extra: bytes = b"") -> Path:
    """A zip whose names are these bytes, not marked as UTF-8."""
    with zipfile.ZipFile(file, "w") as packed:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo(chr(65 + number) * len(name))
            info.extra = extra
            packed.writestr(info, grey(number))
    data = file.read_bytes()
    for number, name in enumerate(names):
        data = data.replace(bytes([65 + number]) * len(name), name)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    ("classes", "encoding"),
    [
        (["Café crème", "Teller"], "utf-8"),
        (["Café crème", "Straße", "Ñandú"], "cp437"),
        (["ål", "São Paulo"], "cp850"),
        (["Côte d\u2019Ivoire", "Blåbär"], "cp1252"),
        (["Кошка", "Собака"], "cp866"),
        (["кошка", "собака"], "cp1251"),
        (["犬", "猫", "鳥"], "cp932"),
    ],
)
def test_names_in_a_zip_without_a_mark_of_their_encoding(tmp_path: Path, classes: list[str], encoding: str) -> None:
    names = [f"{name}/0.png".encode(encoding) for name in classes]
    assert labelled(zip_with_names(tmp_path / "a.zip", names)).classes == tuple(sorted(classes))


def test_the_unicode_path_of_info_zip(tmp_path: Path) -> None:
    raw, name = b"caf?/0.png", "café/0.png"

    def extra(checksum: int) -> bytes:
        body = b"\1" + struct.pack("<L", checksum) + name.encode()
        return struct.pack("<HH", 0x5455, 1) + b"\0" + struct.pack("<HH", 0x7075, len(body)) + body

    assert labelled(zip_with_names(tmp_path / "a.zip", [raw], extra(zlib.crc32(raw)))).classes == ("café",)
    renamed = zip_with_names(tmp_path / "b.zip", [raw], extra(zlib.crc32(b"other")))  # after the field was written
    assert labelled(renamed).classes == ("caf?",)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_names_in_a_tar_in_the_encoding_of_its_system(tmp_path: Path, encoding: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding=encoding) as tar:
        for name in ("Café/0.png", "Straße/0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(grey(0))
            tar.addfile(info, io.BytesIO(grey(0)))
    assert labelled(tmp_path / "a.tar").classes == ("Café", "Straße")


def test_two_spellings_in_an_archive_are_one_class(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for number, form in enumerate(("NFC", "NFD")):
            packed.writestr(unicodedata.normalize(form, f"top/Café/{number}.png"), grey(number))  # type: ignore[arg-type]
        packed.writestr("top/cup/0.png", grey(9))
    found = labelled(tmp_path / "a.zip")
    assert found.classes == ("Café", "cup")
    assert [found.labels.tolist().count(k) for k in (0, 1)] == [2, 1]


def test_the_last_member_of_a_name_counts(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "a.tar", {"plate/0.png": "../cup/0.png"})
    assert open_tree(file, everything=True).read("plate/0.png") == FILES["cup/0.png"]
    assert archive.MAX_FILE == 2**28
