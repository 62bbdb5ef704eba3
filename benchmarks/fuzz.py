"""Feed damaged and random files to every reader: only UserError may come out, in bounded time and memory.

Command: python benchmarks/fuzz.py [--inputs N] [--seed S]   (writes benchmarks/results/fuzz.json)
Each input is a real file of its kind with one to eight mutations (or, one time in ten, random bytes). A reader that
raises anything else, takes longer than ten seconds or needs more memory than the limit fails; the input is kept beside
the results.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from promptcl.archive import open_tree
from promptcl.config import DataConfig
from promptcl.data import FileSource, load_split
from promptcl.errors import UserError
from promptcl.recipes import available, load_config
from promptcl.runtime import git_commit, versions

SECONDS = 10
_PNG = b"\x89PNG\r\n\x1a\n"
MEMORY = 1 << 30  # bytes that reading may add to the process
Reader = Callable[[bytes, Path], object]


class Target(NamedTuple):
    """A reader, and real inputs for it to start from."""

    read: Reader
    seeds: list[bytes]


class Hang(BaseException):
    """An input took too long; not an Exception, so that no reader can swallow it."""


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    """File name -> content: each format, in the modes that it has."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    rgb, rgba, grey = Image.fromarray(noise[..., :3]), Image.fromarray(noise), Image.fromarray(noise[..., 0])
    deep = Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    frames = [grey, grey.rotate(90), grey.rotate(180)]
    return {
        "rgb.png": _saved(rgb, "png"),
        "rgba.png": _saved(rgba, "png", exif=exif),
        "deep.png": _saved(deep, "png"),
        "palette.png": _saved(rgb.convert("P"), "png", transparency=3),
        "one.png": _saved(grey.convert("1"), "png"),
        "photo.jpg": _saved(rgb, "jpeg", exif=exif, quality=90),
        "progressive.jpg": _saved(rgb, "jpeg", progressive=True),
        "cmyk.jpg": _saved(rgb.convert("CMYK"), "jpeg"),
        "two.jpg": _saved(rgb, "mpo", save_all=True, append_images=[rgb]),
        "lossy.webp": _saved(rgba, "webp"),
        "animated.webp": _saved(rgb, "webp", save_all=True, append_images=[rgb.rotate(90)], lossless=True),
        "plain.bmp": _saved(rgb, "bmp"),
        "palette.bmp": _saved(grey.convert("P"), "bmp"),
        "animated.gif": _saved(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "raw.tif": _saved(rgb, "tiff"),
        "packed.tif": _saved(deep, "tiff", compression="tiff_lzw"),
        "float.tiff": _saved(Image.fromarray(noise[..., 0].astype(np.float32) / 255), "tiff"),
    }


def with_checksums(png: bytes) -> bytes:
    """The chunks of a PNG with their checksums set right."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        length = min(struct.unpack(">I", png[at : at + 4])[0], len(png) - at - 12)
        body = png[at + 4 : at + 8 + length]
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out)


def read_image(data: bytes, folder: Path) -> object:
    """Decode one picture."""
    if data[:8] == _PNG and sum(data[-64:]) % 2:
        data = with_checksums(data)  # damage that the checksums do not give away
    return FileSource(["picture"], lambda path: data, "fuzz", cache_mb=0, max_side=64).read(0)


def _archives() -> dict[str, list[bytes]]:
    files = {f"{part}/{name}": data for part in ("train/a", "test/a") for name, data in list(pictures().items())[:3]}
    made: dict[str, list[bytes]] = {".tar": [], ".tar.gz": [], ".zip": []}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:  # type: ignore[call-overload]
                for name, data in {**files, "train/a/" + "long/" * 30 + "ä.txt": b"x"}.items():
                    info = tarfile.TarInfo(name)
                    info.size, info.pax_headers = len(data), {"comment": "x"}
                    tar.addfile(info, io.BytesIO(data))
                link = tarfile.TarInfo("train/a/link.png")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(link)
            made[suffix].append(buffer.getvalue())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        made[".zip"].append(buffer.getvalue())
    made[".tar.gz"] += made[".tar"]  # damaged, then packed: its checksum would stop everything else
    return made


def _read_archive(suffix: str) -> Reader:
    def read(data: bytes, folder: Path) -> object:
        file = folder / f"archive{suffix}"
        if suffix == ".tar.gz" and data[:2] != b"\x1f\x8b":
            data = gzip.compress(data, 1)
        file.write_bytes(data)
        split = load_split(DataConfig(name="folder", root=str(file), cache_mb=0))
        with contextlib.suppress(UserError):  # a damaged picture must not keep the others from being read
            split.train.image(0)
        tree = open_tree(file)
        return [tree.read(path) for path in tree.paths if not path.endswith("/")]

    return read


def _npz() -> list[bytes]:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([[0], [1], [0], [1]])
    arrays: dict[str, Any] = {
        f"{p}_{k}": v for p in ("train", "test") for k, v in (("images", images), ("labels", labels))
    }
    made = []
    for save in (np.savez, np.savez_compressed):
        for names in ({}, {"class_names": np.array(["cat", "dög"])}):
            buffer = io.BytesIO()
            save(buffer, **{**arrays, **names})
            made.append(buffer.getvalue())
    return made


def read_npz(data: bytes, folder: Path) -> object:
    """Load an .npz data set and one of its images."""
    file = folder / "data.npz"
    file.write_bytes(data)
    return load_split(DataConfig(name="npz", root=str(file))).train.image(0)


def read_recipe(data: bytes, folder: Path) -> object:
    """Load a recipe from a file."""
    file = folder / "recipe.yaml"
    file.write_bytes(data)
    return load_config(str(file))


def read_settings(data: bytes, folder: Path) -> object:
    """Apply one key=value to a recipe."""
    return load_config("demo", [data.decode("utf-8", "replace")])


def targets() -> dict[str, Target]:
    """Every reader with its seeds."""
    recipes = [
        (Path(__file__).parents[1] / f"src/promptcl/configs/{name}.yaml").read_bytes() for name in available("recipes")
    ]
    settings = [
        b"train.epochs=5",
        b"data.crop_scale=[0.1, 1]",
        b"method.name=ncm",
        b"backbone.kwargs.depth=6",
        b"seed=7",
    ]
    archives = {f"archive{suffix}": Target(_read_archive(suffix), seeds) for suffix, seeds in _archives().items()}
    return {
        "image": Target(read_image, list(pictures().values())),
        **archives,
        "npz": Target(read_npz, _npz()),
        "recipe": Target(read_recipe, [*recipes, b"a: &x [1]\nb: [*x, *x]", b"tasks: 0x_1\nseed: 2001-99-99"]),
        "key=value": Target(read_settings, settings),
    }


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with one to eight changes, or random bytes."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(600))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 8, 64])
        kind = rng.randrange(8)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * rng.choice([1, 2, 50])
        elif kind == 4:
            number = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32)])
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif kind == 5 and rng.random() < 0.2:
            del data[at:]
        elif kind == 6:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        elif kind == 7:
            data[at:at] = rng.choice(
                [b"[" * 3000, b"9" * 5000, b"\0" * 64, b"../", b"*", b"&a ", b"!!python/name:os", b"\xff"]
            )
    return bytes(data)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Raise Hang in a reader that is too slow, MemoryError in one that asks for too much."""

    def late(number: int, frame: object) -> None:
        raise Hang

    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    signal.signal(signal.SIGALRM, late)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(target: Target, data: bytes, folder: Path) -> str:
    """`read`, `refused`, or what went wrong."""
    signal.alarm(SECONDS)
    try:
        target.read(data, folder)
        return "read"
    except UserError as error:
        return "refused" if str(error).strip() else "UserError without a message"
    except Hang:
        return f"longer than {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def run(name: str, target: Target, inputs: int, seed: int, keep: Path) -> dict[str, Any]:
    """Counts for one reader; failing inputs are kept in the folder `keep`."""
    rng, start = random.Random(f"{seed}/{name}"), time.perf_counter()
    counts, failures, slowest = {"read": 0, "refused": 0}, [], 0.0
    with tempfile.TemporaryDirectory() as folder, limits():
        attempt(target, target.seeds[0], Path(folder))  # imports are not what is timed
        for i in range(inputs):
            data, began = mutated(rng, target.seeds), time.perf_counter()
            outcome = attempt(target, data, Path(folder))
            slowest = max(slowest, time.perf_counter() - began)
            if outcome in counts:
                counts[outcome] += 1
            else:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{i}".replace("=", "-")).write_bytes(data)
                failures.append(f"{i}: {outcome[:200]}")
    seconds = time.perf_counter() - start
    return {"inputs": inputs, **counts, "failures": failures, "seconds": seconds, "slowest_seconds": slowest}


def main() -> int:
    """Run every reader and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's remarks on damaged files
    found = {}
    for name, target in targets().items():
        if arguments.only in (None, name):
            found[name] = run(
                name, target, arguments.inputs, arguments.seed, Path(tempfile.gettempdir()) / "fuzz-failures"
            )
            print(
                name,
                {key: value for key, value in found[name].items() if key != "failures"},
                *found[name]["failures"][:5],
                sep="\n  ",
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total = {key: sum(counts[key] for counts in found.values()) for key in ("inputs", "read", "refused")}
    failed = sum(len(counts["failures"]) for counts in found.values())
    results = {
        "total": {**total, "failures": failed},
        "readers": found,
        "peak_memory_bytes": peak,
        "seed": arguments.seed,
    }
    results |= {"versions": versions(), "git_commit": git_commit()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(results["total"])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
