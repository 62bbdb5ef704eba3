"""Decoded images on disk: the same bits, whole or not there, within their room, whatever happens to a writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import in_child
from helpers import ENVIRONMENT, encoded
from PIL import Image
from torch import Tensor

from promptcl.config import DataConfig
from promptcl.data import FileSource, ImageSet, shrunken
from promptcl.data.checked import check_images, remarks_on
from promptcl.data.shrunken import Shrunken

SIDE = 40
SIZE = 3 * SIDE * SIDE
RECORD = SIZE + 48
MAGIC = 18


def picked(number: int) -> tuple[bytes, Tensor]:
    """A digest and an image."""
    generator = torch.Generator().manual_seed(number)
    return number.to_bytes(32, "big"), torch.randint(256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def filled(folder: Path, numbers: range, most: int = 2**20) -> Shrunken:
    cache = Shrunken(folder, most)
    for number in numbers:
        filled_with(cache, number)
    return cache


def filled_with(cache: Shrunken, number: int) -> None:
    digest, image = picked(number)
    cache.put(digest, 512, image)


def there(cache: Shrunken, numbers: range) -> list[int]:
    """Those of the images that are in the cache, and right."""
    found = {number: cache.get(picked(number)[0], 512) for number in numbers}
    assert all(one is None or torch.equal(one, picked(number)[1]) for number, one in found.items())
    return [number for number, one in found.items() if one is not None]


def test_images_come_back_here_and_in_the_next_process(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(5))
    assert there(cache, range(6)) == [0, 1, 2, 3, 4]
    again = Shrunken(tmp_path, 2**20)
    assert there(again, range(6)) == [0, 1, 2, 3, 4]
    assert again.get(picked(0)[0], 256) is None  # reduced to another size it is another image
    first = again.get(picked(0)[0], 512)
    assert first is not None
    first += 1  # a copy
    assert there(again, range(6)) == [0, 1, 2, 3, 4]
    assert there(filled(tmp_path, range(4, 7)), range(8)) == [0, 1, 2, 3, 4, 5, 6]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cut", [0, 5, MAGIC, MAGIC + 10, MAGIC + RECORD - 1, MAGIC + RECORD, MAGIC + 2 * RECORD - 100])
def test_what_a_killed_writer_left_is_ignored(tmp_path: Path, cut: int) -> None:
    filled(tmp_path, range(3)).close()
    (file,) = tmp_path.iterdir()
    os.truncate(file, cut)
    whole = list(range(max(0, cut - MAGIC) // RECORD))
    cache = Shrunken(tmp_path, 2**20)
    assert there(cache, range(3)) == whole
    assert there(filled(tmp_path, range(3)), range(3)) == [0, 1, 2]


@pytest.mark.parametrize("place", [3, MAGIC + 5, MAGIC + 33, MAGIC + 46, MAGIC + 60, MAGIC + RECORD + 1000])
def test_a_flipped_bit_costs_the_image_and_no_more(tmp_path: Path, place: int) -> None:
    filled(tmp_path, range(3)).close()
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)
    found = there(Shrunken(tmp_path, 2**20), range(3))
    assert len(found) < 3
    if place > MAGIC + 48:  # of pixels: the others are there
        assert len(found) == 2


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    (file,) = tmp_path.iterdir()
    os.truncate(file, MAGIC + RECORD + 10)
    assert there(cache, range(3)) == [0]


def test_a_record_that_was_written_in_part_is_not_read(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    cache, (now, most) = filled(tmp_path, range(1)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAGIC + RECORD + 100, most))  # as of a disk that is full there
    try:
        filled_with(cache, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (now, most))
    for number in range(2, 5):  # there is room again, and a record behind the part of one
        filled_with(cache, number)
    assert there(cache, range(5)) == [0]
    assert cache.trouble is not None


def test_the_room_is_kept_and_the_first_images_stay(tmp_path: Path) -> None:
    most = MAGIC + 3 * RECORD + 10
    cache = filled(tmp_path, range(6), most)
    assert there(cache, range(6)) == [0, 1, 2]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= most
    assert there(filled(tmp_path / "none", range(2), 0), range(2)) == []
    assert not (tmp_path / "none").exists()


def test_what_was_used_longest_ago_makes_way(tmp_path: Path) -> None:
    for name, numbers in (("old", range(2)), ("used", range(2, 4))):
        (tmp_path / name).mkdir()
        filled(tmp_path / name, numbers).close()
        (file,) = (tmp_path / name).iterdir()
        file.rename(tmp_path / f"{name}.shrunken")
        (tmp_path / name).rmdir()
    os.utime(tmp_path / "old.shrunken", (1, 1))
    os.utime(tmp_path / "used.shrunken", (2, 2))
    cache = Shrunken(tmp_path, 2 * MAGIC + 4 * RECORD)
    assert there(cache, range(2, 4)) == [2, 3]
    for number in range(4, 9):
        digest, image = picked(number)
        cache.put(digest, 512, image)
    assert there(cache, range(9)) == [2, 3, 4, 5]
    assert not (tmp_path / "old.shrunken").exists()
    assert (tmp_path / "used.shrunken").stat().st_mtime > 1000
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * MAGIC + 4 * RECORD


def test_of_more_files_than_are_opened_the_oldest_make_way(tmp_path: Path) -> None:
    for number in range(shrunken._MOST_FILES + 3):
        filled(tmp_path / "one", range(number, number + 1)).close()
        (file,) = (tmp_path / "one").iterdir()
        os.utime(file.rename(tmp_path / f"{number}.shrunken"), (1000 + number, 1000 + number))
    (tmp_path / "one").rmdir()
    cache = Shrunken(tmp_path, (shrunken._MOST_FILES + 3) * (MAGIC + RECORD))
    for number in range(1000, 1004):
        filled_with(cache, number)
    gone = [n for n in range(shrunken._MOST_FILES + 3) if not (tmp_path / f"{n}.shrunken").exists()]
    assert gone == [0, 1, 2, 3]
    assert there(cache, range(1000, 1004)) == [1000, 1001, 1002, 1003]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_process_that_is_forked_writes_to_a_file_of_its_own(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(1))

    def work() -> None:
        filled_with(cache, 1)
        assert there(cache, range(3)) == [0, 1]
        assert len(list(tmp_path.iterdir())) == 2

    assert in_child(work) == "done"
    filled_with(cache, 2)
    assert there(cache, range(3)) == [0, 2]
    assert there(Shrunken(tmp_path, 2**20), range(3)) == [0, 1, 2]
    full = Shrunken(tmp_path, 3 * RECORD)
    filled_with(full, 3)  # the file of the child makes way, that of its parent, which lives, does not
    assert there(Shrunken(tmp_path, 2**20), range(3)) == [0, 2]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no file that is open")
def test_what_another_process_writes_does_not_make_way(tmp_path: Path) -> None:
    other = filled(tmp_path, range(2))
    cache = filled(tmp_path, range(2, 4), MAGIC + 2 * RECORD)
    assert there(cache, range(4)) == [0, 1]
    assert there(other, range(4)) == [0, 1]
    other.close()
    assert there(filled(tmp_path, range(2, 4), MAGIC + 2 * RECORD), range(4)) == [2, 3]


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    images = photos(tmp_path)
    check_images(images, data=DataConfig(disk_mb=1, disk_root=str(tmp_path / "file"), workers=0))
    (sentence,) = remarks_on(images)
    assert sentence.startswith(f"{tmp_path / 'file'} takes no more decoded images (")
    assert images.image(0).shape == (3, 60, 80)


def photos(folder: Path, fetched: list[str] | None = None, more: dict[str, bytes] | None = None) -> ImageSet:
    """Six images as files, not kept in memory; `fetched` gets the name of each that is read."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(6)]
    files = {f"{i}.jpg": encoded(Image.fromarray(one), "jpeg") for i, one in enumerate(pixels)} | (more or {})

    def fetch(path: str) -> bytes:
        if fetched is not None:
            fetched.append(path)
        return files[path]

    return ImageSet(FileSource(list(files), fetch, cache_mb=0), ["a"], [0] * len(files))


def test_a_second_epoch_reads_no_file(tmp_path: Path) -> None:
    data = DataConfig(disk_mb=1, disk_root=str(tmp_path / "cache"), workers=0)
    expected, fetched = photos(tmp_path).images(range(6)), list[str]()
    images = photos(tmp_path, fetched)
    check_images(images, data=data)
    assert len(fetched) == 6
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(images.images(range(6)), expected, strict=True))
    assert len(fetched) == 6
    other = photos(tmp_path, fetched)  # of another run, which knows the files only once it has read them
    check_images(other, data=data)
    other.images(range(6))
    assert len(fetched) == 12


def test_what_depends_on_more_than_the_file_is_decoded_each_time(tmp_path: Path) -> None:
    """Deep images are scaled by the largest value of their set; and what was remarked has to be said again."""
    deep = [encoded(Image.fromarray(np.full((4, 4), value, dtype=np.uint16))) for value in (100, 1000, 4000)]
    data = DataConfig(disk_mb=1, disk_root=str(tmp_path / "cache"), workers=0)
    alone = photos(tmp_path, more={"a.png": deep[0], "b.png": deep[1]})
    check_images(alone, data=data)
    assert alone.image(6)[0, 0, 0] == 100 >> 2  # ten bits
    together = photos(tmp_path, more={"a.png": deep[0], "b.png": deep[1], "c.png": deep[2]})
    check_images(together, data=data)
    assert together.image(6)[0, 0, 0] == 100 >> 4  # twelve
    source = together.sources[0]
    assert isinstance(source, FileSource)
    assert source.shrunken is not None
    assert len(source.shrunken._opened()) == 6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_writer_is_killed(tmp_path: Path) -> None:
    """At any moment: what is left is whole images, and the next process adds to them."""
    code = (
        "import itertools, sys, torch\n"
        "from pathlib import Path\n"
        "from promptcl.data.shrunken import Shrunken\n"
        "cache = Shrunken(Path(sys.argv[1]), 2**40)\n"
        "print('begun', flush=True)\n"
        "for n in itertools.count():\n"
        f"    image = torch.randint(256, (3, {SIDE}, {SIDE}), generator=torch.Generator().manual_seed(n))\n"
        "    cache.put(n.to_bytes(32, 'big'), 512, image.byte())\n"
    )
    for wait in (0.05, 0.3):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
        time.sleep(wait)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        cache = Shrunken(tmp_path, 2**40)
        found = {n: cache.get(n.to_bytes(32, "big"), 512) for n in range(4_000)}
        whole = {n: image for n, image in found.items() if image is not None}
        assert list(whole) == list(range(len(whole)))
        assert len(whole) > 0
        for n in list(whole)[:: max(1, len(whole) // 50)]:
            expected = torch.randint(256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(n))
            assert torch.equal(whole[n], expected.byte())
        cache.close()
