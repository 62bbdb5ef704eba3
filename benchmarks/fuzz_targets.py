"""What benchmarks/fuzz.py feeds: every reader of files from elsewhere, and real inputs of its kind to start from."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import json
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_lists
import fuzz_serve
import numpy as np
import safetensors.torch
import torch
from fuzz_strangers import odd_archives, read_report, result_files
from PIL import Image

from promptcl.backbone import weights
from promptcl.backbone.vit import Backbone
from promptcl.config.schema import BackboneConfig, DataConfig
from promptcl.data.archive import open_tree
from promptcl.data.files import FileSource
from promptcl.data.inputs import labelled
from promptcl.data.splits import load_split
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config
from promptcl.recipes.registry import available
from promptcl.store import files

_PNG = b"\x89PNG\r\n\x1a\n"
Reader = Callable[[bytes, Path], object]


class Target(NamedTuple):
    """A reader, and real inputs for it to start from."""

    read: Reader
    seeds: list[bytes]


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_files() -> dict[str, bytes]:
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
    """Decode one image."""
    if data[:8] == _PNG and sum(data[-64:]) % 2:
        data = with_checksums(data)  # damage that the checksums do not give away
    return FileSource(["image"], lambda path: data, "fuzz", cache_mb=0, max_side=64).read(0)


def _archives() -> dict[str, list[bytes]]:
    files = {f"{part}/{name}": data for part in ("train/a", "test/a") for name, data in list(image_files().items())[:3]}
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
        with contextlib.suppress(UserError):  # a damaged image must not keep the others from being read
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


_SMALL = {"embed_dim": 8, "depth": 1, "num_heads": 1}


@functools.cache
def backbone() -> Backbone:
    """A ViT small enough to be loaded ten thousand times."""
    return Backbone.create(BackboneConfig(name="test_vit", weights="random", image_size=32, kwargs=_SMALL))


def _weights() -> dict[str, list[bytes]]:
    state = backbone().vit.state_dict()
    made = {".safetensors": [safetensors.torch.save(state)], ".pth": []}
    for content, zipped in ((state, True), ({"state_dict": state, "epoch": 3}, False)):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        made[".pth"].append(buffer.getvalue())
    return made


def _read_weights(suffix: str) -> Reader:
    def read(data: bytes, folder: Path) -> object:
        file = folder / f"vit{suffix}"
        file.write_bytes(data)
        weights.load(backbone().vit, file, "test_vit")
        return None

    return read


@functools.cache
def _stored() -> tuple[bytes, bytes]:
    """learner.json and the tensors of a learner that knows two classes."""
    frozen = ["backbone.name=test_vit", "backbone.weights=random", "backbone.image_size=32"]
    shape = [f"backbone.kwargs.{key}={value}" for key, value in _SMALL.items()]
    learner = Learner(load_config("grow", [*frozen, *shape]), backbone())
    greys = [np.full((8, 8, 3), 60 * i, np.uint8) for i in range(4)]
    learner.learn(labelled(greys, ["a", "b", "a", "b"]))
    with tempfile.TemporaryDirectory() as folder:
        learner.save(folder)
        return tuple(next(Path(folder).glob(name)).read_bytes() for name in ("learner.json", "state-*"))  # type: ignore[return-value]


def _load_store(document: bytes, state: bytes, folder: Path) -> object:
    store = folder / "store"
    store.mkdir(exist_ok=True)
    for old in store.iterdir():
        old.unlink()
    (store / f"state-{hashlib.sha256(state).hexdigest()[:16]}.safetensors").write_bytes(state)
    (store / "learner.json").write_bytes(document)
    return Learner.load(store, backbone=backbone())


def _sealed(document: dict[str, Any], state: bytes) -> bytes:
    """learner.json as a forger would write it: all checksums are right."""
    document.pop("checksum", None)
    document["state"] = {"sha256": hashlib.sha256(state).hexdigest(), "bytes": len(state)}
    return files._text({**document, "checksum": files._checksum(document)})


def read_store(data: bytes, folder: Path) -> object:
    """Load a store with another learner.json; half of those that are JSON get right checksums."""
    state = _stored()[1]
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(data)
        if isinstance(document, dict) and sum(data) % 2:
            data = _sealed(document, state)
    return _load_store(data, state, folder)


def read_state(data: bytes, folder: Path) -> object:
    """Load a store with other tensors, under right checksums."""
    return _load_store(_sealed(json.loads(_stored()[0]), data), data, folder)


def targets() -> dict[str, Target]:
    """Every reader with its seeds."""
    recipes = [
        (Path(__file__).parents[1] / f"src/promptcl/recipes/{name}.yaml").read_bytes() for name in available("recipes")
    ]
    settings = [
        b"train.epochs=5",
        b"data.order=[0.1, 1]",
        b"method.name=ncm",
        b"backbone.kwargs.depth=6",
        b"seed=7",
    ]
    archives = {f"archive{suffix}": Target(_read_archive(suffix), seeds) for suffix, seeds in _archives().items()}
    odd = {
        f"odd archive{suffix}": Target(_read_archive(suffix), seeds)
        for suffix, seeds in odd_archives(image_files()["rgb.png"]).items()
    }
    files = {f"weights{suffix}": Target(_read_weights(suffix), seeds) for suffix, seeds in _weights().items()}
    return {
        "image": Target(read_image, list(image_files().values())),
        **archives,
        **odd,
        "report": Target(read_report, result_files()),
        "lists": Target(fuzz_lists.reader(), fuzz_lists.seeds()),
        "http": Target(fuzz_serve.read_request, fuzz_serve.requests()),
        "npz": Target(read_npz, _npz()),
        "recipe": Target(read_recipe, [*recipes, b"a: &x [1]\nb: [*x, *x]", b"tasks: 0x_1\nseed: 2001-99-99"]),
        "key=value": Target(read_settings, settings),
        **files,
        "store": Target(read_store, [_stored()[0]]),
        "store's tensors": Target(read_state, [_stored()[1]]),
    }
