"""Frozen features of small sets of images, computed once and kept as .npz files: what grid.py measures on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.config.schema import BackboneConfig, DataConfig
from promptcl.data.augment import eval_view
from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split

SIZE = 160
TRAIN, VALIDATION = {"cifar100": 100}, {"cifar100": 20}  # images of a class; of the other sets 120 and 50
FIVE = ("cifar10", "mnist", "svhn", "notmnist", "fashion_mnist")


@dataclass
class Part:
    """Deep features [N, F] of a set of images, and their class ids [N]."""

    x_NF: Tensor
    y_N: Tensor

    def of(self, rows: np.ndarray) -> Part:
        """Some of the rows."""
        return Part(self.x_NF[rows], self.y_N[rows])


def backbone(weights: Path) -> Backbone:
    """ViT-Ti/16 at 160 px, float32."""
    given = {"name": "vit_tiny_patch16_224", "weights": str(weights), "image_size": SIZE, "precision": "fp32"}
    return Backbone.create(BackboneConfig.model_validate(given))


def load(name: str, root: Path, vit: Backbone, kept: Path) -> tuple[Part, Part, Part]:
    """Training, validation and test images of a data set: its first training images of each class, the next, the first
    20 test images. Validation images are training images that nothing else uses.

    root: cifar100.tar.gz for `cifar100`, else a folder of MedMNIST-like .npz files; kept: a folder for features.
    """
    train, held = TRAIN.get(name, 120), VALIDATION.get(name, 50)
    files = [kept / f"{name}-{part}.npz" for part in ("train", "validation", "test")]
    if not all(file.exists() for file in files):
        kept.mkdir(parents=True, exist_ok=True)
        split = load_split(data(name, root))
        place = [nth(split.train, range(train)), nth(split.train, range(train, train + held))]
        for file, images in zip(files, [*map(split.train.select, place), split.test], strict=True):
            np.savez(file, x=_features(images, vit), y=images.labels)
    return tuple(_read(file) for file in files)  # type: ignore[return-value]


def data(name: str, root: Path) -> DataConfig:
    """Where the images of a data set are, with its first 20 test images of each class; `root` as in `load`."""
    if name == "cifar100":
        return DataConfig(name="folder", root=str(root), test_per_class=20)
    return DataConfig(name="npz", root=str(root / f"{name}.npz"), test_per_class=20)


def nth(images: ImageSet, wanted: range) -> list[int]:
    """The images that are the `wanted` ones of their class, in file order."""
    seen: dict[int, int] = {}
    found = []
    for i, label in enumerate(images.labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        if seen[label] in wanted:
            found.append(i)
    return found


def _features(images: ImageSet, vit: Backbone) -> np.ndarray:
    parts = []
    for start in range(0, len(images), 64):
        some = images.images(range(start, min(start + 64, len(images))))
        view = eval_view(some, vit.image_size, 1.0, torch.device("cpu"))
        parts.append(vit.query(vit.normalise(view), "deep"))
    return torch.cat(parts).numpy()


def _read(file: Path) -> Part:
    content = np.load(file, allow_pickle=False)
    return Part(torch.from_numpy(content["x"]), torch.from_numpy(content["y"]).long())
