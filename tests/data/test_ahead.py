"""Threads read images ahead: the same images, bad ones named, in bounded memory, with nothing left behind."""

from __future__ import annotations

import copy
import os
import struct
import tarfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encoded
from PIL import Image
from torch import Tensor

from promptcl.config import DataConfig
from promptcl.data import FileSource, ImageSet
from promptcl.data.ahead import Ahead, usual_workers
from promptcl.data.archive import open_tree
from promptcl.data.checked import BadImages, check_images, remarks_on, unreadable
from promptcl.errors import UserError

RNG = np.random.default_rng(0)


def photo(width: int = 320, height: int = 240) -> bytes:
    """A JPEG that takes milliseconds to decode."""
    return encoded(Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)), "jpeg")


PHOTOS = {f"{i}.jpg": photo() for i in range(12)}


def photos(cache_mb: int = 0, more: dict[str, bytes] | None = None) -> ImageSet:
    files = {**PHOTOS, **(more or {})}
    source = FileSource(list(files), files.__getitem__, "photos", cache_mb)
    return ImageSet(source, ["a"], [0] * len(files))


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "promptcl-decode"]


def ended() -> bool:
    """Whether all workers end within two seconds."""
    end = time.monotonic() + 2
    while workers() and time.monotonic() < end:
        time.sleep(0.01)
    return not workers()


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("cache_mb", [0, 2, 64])
def test_images_are_the_same_whoever_reads_them(number: int, cache_mb: int) -> None:
    expected = [photos().image(i) for i in range(12)]
    images, ahead = photos(cache_mb), Ahead(number)
    order = [[3, 1, 4], [1, 5, 9], [2, 6, 3], [11, 0, 0]]
    for now, coming in zip(order, [*order[1:], []], strict=True):
        ahead.expect("steps", map(images.place, [*now, *coming]))
        for _ in range(2):  # another view of the same images
            assert all(torch.equal(a, expected[i]) for a, i in zip(ahead.images(images, now), now, strict=True))
    ahead.forget()
    assert ended()


def test_images_are_read_while_nobody_asks_for_them() -> None:
    images, ahead = photos(), Ahead(2)
    source = images.sources[0]
    assert isinstance(source, FileSource)
    ahead.expect("steps", map(images.place, range(4)))
    assert ended()
    assert np.flatnonzero(source.sound).tolist() == [0, 1, 2, 3]
    first = ahead.images(images, [2])[0]
    assert first is ahead.images(images, [2])[0]  # it is kept as long as it is planned
    ahead.expect("steps", [])
    assert first is not ahead.images(images, [2])[0]


def test_each_image_is_read_once() -> None:
    """Also where workers had read all of a batch, and ended, before it was asked for."""
    fetched: list[str] = []

    def fetch(path: str) -> bytes:
        fetched.append(path)
        return PHOTOS[path]

    images, ahead = ImageSet(FileSource(list(PHOTOS), fetch, cache_mb=0), ["a"], [0] * 12), Ahead(2)
    for start in range(0, 12, 4):
        ahead.expect("steps", map(images.place, range(start, min(start + 8, 12))))
        if start:
            assert ended()
        ahead.images(images, range(start, start + 4))
    assert sorted(fetched) == sorted(PHOTOS)


def test_what_is_read_ahead_is_bounded() -> None:
    images = photos()
    one = images.image(0).nbytes
    ahead = Ahead(1, most_bytes=3 * one)
    ahead.expect("steps", map(images.place, range(12)))
    assert ended()
    source = images.sources[0]
    assert isinstance(source, FileSource)
    assert source.sound.sum() == 3
    assert len(ahead.images(images, range(12))) == 12  # what is asked for is read all the same


def test_bad_images_are_named_in_their_order() -> None:
    images = photos(more={"cut.jpg": PHOTOS["0.jpg"][:900], "text.jpg": b"hello"})
    ahead = Ahead(3)
    ahead.expect("steps", map(images.place, range(14)))
    with pytest.raises(UserError, match=r"^photos/cut\.jpg does not decode as an image"):
        ahead.images(images, range(14))
    for number in (0, 3):
        fresh = photos(more={"cut.jpg": PHOTOS["0.jpg"][:900], "text.jpg": b"hello"})
        with pytest.raises(BadImages) as caught:
            check_images(fresh, data=DataConfig(workers=number))
        names = [sentence.split(" does not decode")[0] for sentence in caught.value.sentences]
        assert names == ["photos/cut.jpg", "photos/text.jpg"]
        assert list(unreadable(fresh, DataConfig(workers=number))) == [12, 13]
    assert ended()


def test_other_errors_come_to_whoever_asks() -> None:
    class Broken:
        def __len__(self) -> int:
            return 1

        def read(self, row: int) -> Tensor:
            raise MemoryError

        def content(self, row: int) -> bytes:
            return b""

        def name(self, row: int) -> str:
            return ""

        def is_slow(self, row: int) -> bool:
            return True

    with pytest.raises(MemoryError):
        Ahead(1).images(ImageSet(Broken(), ["a"], [0]), [0])
    assert ended()


def test_the_first_reading_says_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    check_images(photos(), photos(), tell=lambda done, of: told.append((done, of)))
    assert told == [(0, 24), (24, 24)]


def test_remarks_stay_with_their_images_in_threads() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + struct.pack("<HHII", 0x010F, 2, 4096, 90000) + b"\0\0\0"
    odd = encoded(Image.fromarray(RNG.integers(0, 256, (240, 320, 3), dtype=np.uint8)), "jpeg", exif=exif)
    images = photos(more={f"odd{i}.jpg": odd for i in range(5)})
    before = warnings.showwarning, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_images(images, data=DataConfig(workers=4))
    assert (warnings.showwarning, list(warnings.filters)) == before
    source = images.sources[0]
    assert isinstance(source, FileSource)
    assert sorted(source.remarks) == [12, 13, 14, 15, 16]
    (sentence,) = remarks_on(images)
    assert sentence.startswith("photos/odd0.jpg: ")
    assert sentence.endswith("(and 4 more like it)")


def test_threads_share_an_archive(tmp_path: Path) -> None:
    for name, data in PHOTOS.items():
        (tmp_path / name).write_bytes(data)
    for kind, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
        with tarfile.open(tmp_path / f"photos{kind}", mode) as tar:  # type: ignore[call-overload]
            for name in PHOTOS:
                tar.add(tmp_path / name, name)
        tree = open_tree(tmp_path / f"photos{kind}")
        images = ImageSet(FileSource(sorted(PHOTOS), tree.read), ["a"], [0] * 12)
        plain = ImageSet.from_files([tmp_path / name for name in sorted(PHOTOS)], ["a"] * 12)
        read = Ahead(4).images(images, range(12))
        assert all(torch.equal(a, b) for a, b in zip(read, plain.images(range(12)), strict=True))


def test_small_images_are_read_without_threads() -> None:
    """Threads wait for Python's lock, which is most of what the smallest images need."""
    small = encoded(Image.new("L", (8, 8), 7))
    images = ImageSet(FileSource([str(i) for i in range(200)], lambda path: small, cache_mb=0), ["a"], [0] * 200)
    check_images(images, data=DataConfig(workers=2))
    source = images.sources[0]
    assert isinstance(source, FileSource)
    assert not source.is_slow(0)
    ahead = Ahead(2)
    ahead.expect("steps", map(images.place, range(200)))
    assert not workers()


def test_one_worker_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert usual_workers() == min(cores, 16) == Ahead(None).workers
    assert copy.deepcopy(Ahead(3)).workers == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert usual_workers() == 1


class GivenUp(BaseException):
    """What a source raises whose work is not wanted any more."""


def test_who_waits_hears_of_what_is_no_exception_too(tmp_path: Path) -> None:
    class Stopping(FileSource):
        def is_slow(self, row: int) -> bool:
            return True

        def read(self, row: int) -> Tensor:
            raise GivenUp

    images = ImageSet(Stopping(["a", "b"], lambda path: b""), ["x"], [0, 0])
    with pytest.raises(GivenUp):
        Ahead(2).images(images, [0, 1])
