"""Decoded images in memory: the budget counts what they take."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
import torch
from helpers import encoded
from PIL import Image

from promptcl.data.files import FileSource
from promptcl.data.kept import Kept


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much memory a process has")
@pytest.mark.parametrize("side", [8, 32, 128, 512])
def test_the_budget_is_what_the_process_grows_by(side: int) -> None:
    most = 8 * 2**20
    count = most // (3 * side * side) + 10
    kept, before = Kept(count, most), resident()
    taken = [kept.put(row, torch.zeros(3, side, side, dtype=torch.uint8)) for row in range(count)]
    grown = resident() - before  # the last page may be a large one, of 2 MiB
    assert 0.9 * most < kept.bytes <= most
    assert grown < 1.05 * most + 3 * 2**20, f"{grown / 2**20:.1f} MiB"
    assert taken == sorted(taken, reverse=True)  # the first ones stay
    assert taken[0]
    assert not taken[-1]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much memory a process has")
def test_files_take_what_they_say() -> None:
    data = encoded(Image.effect_noise((32, 32), 50))
    source = FileSource(["x"] * 800, lambda path: data, cache_mb=2)
    source.uncached().read(0)
    before = resident()
    for row in range(len(source)):
        source.read(row)
    grown = resident() - before  # the last page may be a large one, of 2 MiB
    assert 0.95 * 2**21 < source.kept_bytes <= 2**21
    assert grown < source.kept_bytes + 3 * 2**20, f"{grown / 2**20:.1f} MiB"
    assert source.holds(0)
    assert not source.holds(799)


def test_images_of_all_sizes_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(1 + i % 7, 1 + i * 13 % 31) for i in range(300)]
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    kept = Kept(300, 2**20)
    for row in torch.randperm(300, generator=generator).tolist():
        assert kept.get(row) is None
        assert kept.put(row, images[row])
        assert kept.put(row, images[row])  # a second thread
    for row, image in enumerate(images):
        found = kept.get(row)
        assert found is not None
        assert torch.equal(found, image)
    assert kept.bytes == sum(image.nbytes for image in images) + 16 * 300
    kept.clear()
    assert kept.get(0) is None
    assert kept.bytes == 0


def test_threads_may_ask_while_the_first_image_comes() -> None:
    failed: list[BaseException] = []

    def ask(kept: Kept, done: threading.Event) -> None:
        try:
            while not done.is_set():
                assert kept.holds(5) in (True, False)
                found = kept.get(5)
                assert found is None or bool((found == 7).all())
        except BaseException as error:
            failed.append(error)

    for _ in range(30):
        kept, done = Kept(10, 10_000), threading.Event()
        threads = [threading.Thread(target=ask, args=(kept, done)) for _ in range(3)]
        for thread in threads:
            thread.start()
        kept.put(5, torch.full((3, 8, 8), 7, dtype=torch.uint8))
        done.set()
        for thread in threads:
            thread.join()
    assert not failed


def test_blocks_are_as_large_as_an_image_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptcl.data.kept._BLOCK", 100)
    images = [torch.full((3, size, size), size, dtype=torch.uint8) for size in (1, 5, 12, 2, 3)]
    kept = Kept(5, 10_000)
    assert all(kept.put(row, image) for row, image in enumerate(images))
    found = [kept.get(row) for row in range(5)]
    assert all(one is not None and torch.equal(one, image) for one, image in zip(found, images, strict=True))
