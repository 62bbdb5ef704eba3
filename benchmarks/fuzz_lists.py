"""Text lists of data sets for the fuzzer: small trees of their true layouts, in which one list is damaged."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from promptcl.config.schema import DataConfig
from promptcl.data.splits import load_domains, load_split

_BUFFER = io.BytesIO()
Image.new("L", (4, 4)).save(_BUFFER, "jpeg")
_JPEG = _BUFFER.getvalue()
_NAMES = ("n01443537", "n02051845")
_BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
_PATHS = [f"{name}/{name[4:]}_{i}.jpg" for name in _BIRDS for i in range(3)]


_PARTS = ((0, "train"), (1, "test"))
_ROWS = [f"{i}.jpg\t{'train' if i < 6 else 'test'}\td{i % 2}\tk{i // 2 % 2}\n" for i in range(10)]


def _numbered(values: list[str]) -> str:
    return "".join(f"{i} {value}\n" for i, value in enumerate(values, start=1))


_COLUMNS = "data:\n- {0}/{2}.jpg\n- {1}/{2}.jpg\ntargets:\n- 0\n- 1\n"

# Data set -> (its files without images, its images, the lists that are damaged)
TREES: dict[str, tuple[dict[str, str], list[str], tuple[str, ...]]] = {
    "imagenet_r": (
        {f"imagenet-r_{part}.txt": f"{_NAMES[0]}/{i}.jpg 0\n{_NAMES[1]}/{i}.jpg 1\n" for i, part in _PARTS},
        [f"{name}/{i}.jpg" for name in _NAMES for i in range(2)],
        ("imagenet-r_train.txt",),
    ),
    "imagenet_r.coda": (
        {f"imagenet-r_{part}.yaml": _COLUMNS.format(*_NAMES, i) for i, part in _PARTS},
        [f"{name}/{i}.jpg" for name in _NAMES for i in range(2)],
        ("imagenet-r_train.yaml",),
    ),
    "cub200": (
        {
            "images.txt": _numbered(_PATHS),
            "image_class_labels.txt": _numbered(list("111222")),
            "train_test_split.txt": _numbered(list("011101")),
        },
        [f"images/{path}" for path in _PATHS],
        ("images.txt", "image_class_labels.txt", "train_test_split.txt"),
    ),
    "domainnet": (
        {f"sketch_{part}.txt": f"sketch/dog/{i}.jpg 0\nsketch/cat/{i}.jpg 1\n" for i, part in _PARTS},
        [f"sketch/{name}/{i}.jpg" for name in ("dog", "cat") for i in range(2)],
        ("sketch_train.txt",),
    ),
    "tiny_imagenet": (
        {"val/val_annotations.txt": "".join(f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n" for i, name in enumerate(_NAMES))},
        [f"train/{name}/images/{name}_0.JPEG" for name in _NAMES] + [f"val/images/val_{i}.JPEG" for i in range(2)],
        ("val/val_annotations.txt",),
    ),
    "domains": (
        {"split.tsv": "path\tsplit\tdomain\tclass\n" + "".join(_ROWS)},
        [f"{i}.jpg" for i in range(10)],
        ("split.tsv",),
    ),
}


def seeds() -> list[bytes]:
    """The true lists, each behind a line that says which it is."""
    return [f"{name} {which}\n{texts[which]}".encode() for name, (texts, _, lists) in TREES.items() for which in lists]


def reader() -> Callable[[bytes, Path], object]:
    """Reads a data set with one of its lists replaced by what follows the first line; an unknown one is the first."""

    def read(data: bytes, folder: Path) -> object:
        first, _, text = data.partition(b"\n")
        name, _, which = first.decode("ascii", "replace").partition(" ")
        if name not in TREES or which not in TREES[name][2]:
            name, which = "imagenet_r", "imagenet-r_train.txt"
        texts, images, _ = TREES[name]
        root = folder / f"list {name}"
        if not root.is_dir():
            for path in (*texts, *images):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(_JPEG)
        for path, whole in texts.items():
            (root / path).write_bytes(text if path == which else whole.encode())
        config = DataConfig(name=name.partition(".")[0], root=str(root))
        if name in ("domainnet", "domains"):
            return [domain.train.image(0) for domain in load_domains(config)]
        return load_split(config).train.image(0)

    return read
