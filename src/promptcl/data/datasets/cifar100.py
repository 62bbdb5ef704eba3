"""CIFAR-100, 100 classes of 32 x 32 photos: torchvision downloads it (161 MiB) to data.root or ~/.cache/promptcl."""

from __future__ import annotations

from pathlib import Path

import torchvision

from promptcl.config import DataConfig
from promptcl.data.images import ArraySource, ImageSet
from promptcl.data.splits import Split
from promptcl.errors import UserError
from promptcl.runtime import disk


def load(config: DataConfig) -> Split:
    """The official split, 500 training and 100 test images a class, classes in official label order.

    test is empty where validation_per_class makes it needless. Raises UserError when the download fails.
    """
    root = disk.expanded(config.root or "~/.cache/promptcl")
    if root.is_file():
        raise UserError(
            f"data.name=cifar100 takes a folder as data.root but {root} is a file; "
            f"for an archive of images write data.name=folder data.root={root}"
        )
    train = _half(root, train=True)
    return Split(train, train.select([]) if config.validation_per_class is not None else _half(root, train=False))


def _half(root: Path, train: bool) -> ImageSet:
    try:
        images = torchvision.datasets.CIFAR100(str(root), train=train, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"CIFAR-100 is not in {root} and could not be downloaded ({error}); put cifar-100-python.tar.gz there, "
            "or write data.name=folder data.root=PATH for a folder or archive with train/CLASS/... and test/CLASS/..."
        ) from error
    return ImageSet(
        ArraySource(images.data, f"CIFAR-100 {'train' if train else 'test'}"), images.classes, images.targets
    )
