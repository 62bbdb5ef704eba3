"""How fast are photos decoded, reduced and cut, by how many workers, from which cache, and in how much memory?

Command: python benchmarks/inputs.py CIFAR100.tar.gz [PART ...] [--photos N] [--rounds R] [--many N]
It writes benchmarks/results/speed/inputs.json and the tables of docs/speed.md; `--check` compares these only. Parts:
workers, decoders, caches, memory (all). Photos of 2048 x 1536 are made of real images, each enlarged four times, and
saved as JPEG of quality 90. `memory` reads --many entries (50,000 say), which are these photos again and again: each is
an image of its own to whoever reads it. Rounds are in turn, so that a ratio compares what ran within the same seconds.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from marked import write
from PIL import Image

from promptcl.config import Config
from promptcl.data import FileSource, ImageSet, labelled
from promptcl.data.ahead import Ahead, usual_workers
from promptcl.data.checked import check_images
from promptcl.experiments.inputs import input_rates, once
from promptcl.runtime.provenance import git_commit, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "speed" / "inputs.json"
PAGE = ROOT / "docs" / "speed.md"
SIZE, CPU = 224, torch.device("cpu")


def make_photos(archive: str, folder: Path, count: int) -> list[Path]:
    """Write `count` photos of 3 megapixels, mosaics of real images, each enlarged to 128 x 128."""
    real, rng, paths = labelled(_train(archive)), np.random.default_rng(0), []
    for number in range(count):
        sheet = Image.new("RGB", (2048, 1536))
        for place, i in enumerate(rng.integers(0, len(real), 192).tolist()):
            tile = Image.fromarray(real.image(i).permute(1, 2, 0).numpy())
            sheet.paste(tile.resize((128, 128), Image.Resampling.BICUBIC), (place % 16 * 128, place // 16 * 128))
        paths.append(folder / f"{number:04}.jpg")
        sheet.save(paths[-1], quality=90)
    return paths


def _train(archive: str) -> ImageSet:
    from promptcl.config import DataConfig
    from promptcl.data import load_split

    return load_split(DataConfig(name="folder", root=archive, train_per_class=20, test_per_class=1)).train


def photo_set(paths: Sequence[Path], cache_mb: int = 0, count: int | None = None) -> ImageSet:
    """The photos as `count` entries (None: one each), in one class."""
    names = [str(paths[i % len(paths)]) for i in range(count or len(paths))]
    return ImageSet(FileSource(names, lambda path: Path(path).read_bytes(), cache_mb=cache_mb), ["a"], [0] * len(names))


def workers(paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Images a second with 0 (whoever asks decodes), 1, 2 and 4 workers; and how many times as fast as with none."""
    numbers, rows = (0, 1, 2, 4), []
    images, config = photo_set(paths, count=6 * len(paths)), Config()  # so many that the first batch hardly counts
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 16})})
    for _ in range(rounds):
        rows.append(input_rates(images, config, SIZE, 1, CPU, numbers)["workers"])
    found: dict[str, Any] = {}
    for number in map(str, numbers):
        rates = [row[number]["images_per_second"] for row in rows]
        ratios = [row[number]["images_per_second"] / row["0"]["images_per_second"] for row in rows]
        cpu = [row[number]["cpu_seconds"] for row in rows]
        found[number] = {
            "images_per_second": _spread(rates),
            "times_none": _spread(ratios),
            "cpu_ms": _spread(cpu, 1e3),
        }
    return found


def decoders(paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Milliseconds of the processor that each decoder takes for a photo; the last two only where they are installed."""
    data = [path.read_bytes() for path in paths[:24]]

    def pillow(one: bytes, draft: bool) -> Image.Image:
        file = Image.open(io.BytesIO(one))
        if draft:
            file.draft(None, (512, 512))
        return file.resize((683, 512), Image.Resampling.BILINEAR)

    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow, half size by JPEG's draft mode (promptcl)": lambda one: pillow(one, True),
        "Pillow, full size": lambda one: pillow(one, False),
    }
    try:
        from torchvision.io import decode_jpeg
        from torchvision.transforms.v2.functional import resize

        def vision(one: bytes) -> object:
            return resize(decode_jpeg(torch.frombuffer(bytearray(one), dtype=torch.uint8)), [512, 683], antialias=True)

        ways["torchvision.io.decode_jpeg, which has full size only"] = vision
    except ImportError:
        pass
    try:
        simple = importlib.import_module("simplejpeg").decode_jpeg

        def simplejpeg(one: bytes) -> object:
            half = Image.fromarray(simple(one, min_height=512, min_width=512, min_factor=2))
            return half.resize((683, 512), Image.Resampling.BILINEAR)

        ways["simplejpeg, three eighths of the size (768 x 576)"] = simplejpeg
    except ImportError:
        pass
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            before = time.process_time()
            for one in data:
                way(one)
            seconds[name].append((time.process_time() - before) / len(data))
    first = next(iter(seconds.values()))
    return {
        name: {"cpu_ms": _spread(took, 1e3), "times_first": _spread([a / b for a, b in zip(first, took, strict=True)])}
        for name, took in seconds.items()
    }


def caches(paths: Sequence[Path], folder: Path, rounds: int) -> dict[str, Any]:
    """Images a second of an epoch with the usual workers: from files, from the cache on disk, from memory."""
    data = Config().data.model_copy(update={"disk_mb": 4096, "disk_root": str(folder)})
    sets = {"files": photo_set(paths), "cache on disk": photo_set(paths), "memory": photo_set(paths, 4096)}
    check_images(sets["cache on disk"], data=data)
    check_images(sets["memory"])
    rates: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(rounds):
        for name, images in sets.items():
            before = time.perf_counter()
            once([images.place(i) for i in range(len(images))], data, SIZE, 16, usual_workers(), CPU)
            rates[name].append(len(images) / (time.perf_counter() - before))
    return {name: {"images_per_second": _spread(found)} for name, found in rates.items()}


def memory(paths: Sequence[Path], count: int, cache_mb: int = 256) -> dict[str, Any]:
    """Read `count` entries, more than `cache_mb` holds: once as before learning, then as an epoch in random order."""
    images = photo_set(paths, cache_mb, count)
    begun, marks = time.perf_counter(), list[dict[str, Any]]()

    def mark(part: str, done: int) -> None:
        now = time.perf_counter() - begun
        marks.append({"part": part, "images": done, "seconds": now, "resident_mb": _resident() / 2**20})

    every = max(1, count // 20)
    check_images(images, tell=lambda done, of: mark("reading", done) if done // every > (done - 32) // every else None)
    ahead, order = Ahead(None), torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, count, 64):
        ahead.expect("epoch", [images.place(i) for i in order[start : start + 128]])
        ahead.each([images.place(i) for i in order[start : start + 64]])
        if start // every > (start - 64) // every:
            mark("epoch", start)
    mark("epoch", count)
    source = images.sources[0]
    assert isinstance(source, FileSource)
    later = [row["resident_mb"] for row in marks if row["part"] != "reading" or row["images"] > count // 4]
    return {
        "entries": count,
        "cache_mb": cache_mb,
        "kept_mb": source.kept_bytes / 2**20,
        "decoded_mb": count * images.image(0).nbytes / 2**20,
        "images_per_second": 2 * count / marks[-1]["seconds"],
        "resident_mb_after_a_quarter": {"lowest": min(later), "highest": max(later)},
        "marks": marks,
    }


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _spread(values: Sequence[float], unit: float = 1.0) -> dict[str, float]:
    """Median, lowest and highest, in `unit`s."""
    return {"median": unit * statistics.median(values), "lowest": unit * min(values), "highest": unit * max(values)}


def said(spread: dict[str, float], digits: int = 0) -> str:
    """A median with the lowest and the highest."""
    return f"{spread['median']:.{digits}f} ({spread['lowest']:.{digits}f} to {spread['highest']:.{digits}f})"


def tables(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of each table, or sentence, that there are results of."""
    if "memory" in result:
        yield "inputs-memory", sentence(result["memory"])
    if "workers" in result:
        head = "| workers | images/s | times none | processor, ms an image |\n|:--|--:|--:|--:|\n"
        rows = [
            f"| {number} | {said(row['images_per_second'])} | {said(row['times_none'], 2)} "
            f"| {said(row['cpu_ms'], 1)} |\n"
            for number, row in result["workers"].items()
        ]
        yield "inputs-workers", head + "".join(rows)
    if "caches" in result:
        head = "| an epoch from | images/s |\n|:--|--:|\n"
        rows = [f"| {name} | {said(row['images_per_second'])} |\n" for name, row in result["caches"].items()]
        yield "inputs-caches", head + "".join(rows)
    if "decoders" in result:
        head = "| decoder, reduced to 683 x 512 | processor, ms a photo | times as fast |\n|:--|--:|--:|\n"
        rows = [
            f"| {name} | {said(row['cpu_ms'], 1)} | {said(row['times_first'], 2)} |\n"
            for name, row in result["decoders"].items()
        ]
        yield "inputs-decoders", head + "".join(rows)


def sentence(found: dict[str, Any]) -> str:
    """What reading more than memory holds took."""
    resident = found["resident_mb_after_a_quarter"]
    return (
        f"{found['entries']:,} photos ({found['decoded_mb'] / 1024:.1f} GiB decoded) with "
        f"`data.cache_mb={found['cache_mb']}`, read before learning and then in random order, at "
        f"{found['images_per_second']:.0f} images/s; from the first quarter on the process held between "
        f"{resident['lowest']:.0f} and {resident['highest']:.0f} MiB, {found['kept_mb']:.0f} of them kept images.\n"
    )


def main(arguments: list[str]) -> int:
    """Measure what is asked for and bring the page up to date (exit code 1 with `--check` where it is not)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", nargs="?")
    parser.add_argument("parts", nargs="*", default=["workers", "decoders", "caches", "memory"])
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if given.archive is not None:
        with tempfile.TemporaryDirectory() as folder:
            paths = make_photos(given.archive, Path(folder), given.photos)
            sizes = [path.stat().st_size for path in paths]
            result["photos"] = {"count": len(paths), "width": 2048, "height": 1536, "bytes": statistics.mean(sizes)}
            parts: dict[str, Callable[[], dict[str, Any]]] = {
                "workers": lambda: workers(paths, given.rounds),
                "decoders": lambda: decoders(paths, given.rounds),
                "caches": lambda: caches(paths, Path(folder) / "cache", given.rounds),
                "memory": lambda: memory(paths, given.many),
            }
            for name in given.parts:
                result[name] = parts[name]()
                print(name, json.dumps({k: v for k, v in result[name].items() if k != "marks"}), flush=True)
        result |= {"cores": usual_workers(), "load_average": os.getloadavg()[0], "versions": versions(CPU)}
        result["git_commit"] = git_commit()
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return write(PAGE, dict(tables(result)), "python benchmarks/inputs.py", check=given.check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
