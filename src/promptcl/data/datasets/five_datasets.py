"""5-datasets: CIFAR-10, MNIST, SVHN, notMNIST, Fashion-MNIST, one task each, 50 classes (data.order changes the order).

data.root is a folder with cifar10.npz, mnist.npz, svhn.npz, notmnist.npz and fashion_mnist.npz (see data.name=npz), or
the folder to which torchvision downloads the full sets (~/.cache/promptcl). notMNIST has no such download: put its
class folders A..J into notMNIST_small there; the first 80 % of its images in stored order are training, as in the L2P
release. Grey images become RGB. A class is called by its data set and its own name: `mnist 3`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torchvision

from promptcl.config import DataConfig
from promptcl.data.archive import open_tree
from promptcl.data.datasets import npz
from promptcl.data.files import FileSource
from promptcl.data.images import ArraySource, ImageSet
from promptcl.data.splits import Domain, Split, in_stored_order, ordered
from promptcl.errors import UserError
from promptcl.runtime import disk

NAMES = ("cifar10", "mnist", "svhn", "notmnist", "fashion_mnist")
# Two files of notMNIST that were published damaged: neither is an image.
DAMAGED = ("A/RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png", "F/Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png")


def load_domains(config: DataConfig) -> list[Domain]:
    """The data sets in the order of the L2P release, or in `config.order`.

    Raises UserError: an .npz or download that is missing or damaged, a name in data.order that is none of the five.
    """
    root = disk.expanded(config.root or "~/.cache/promptcl")
    small = any((root / f"{name}.npz").is_file() for name in NAMES)
    domains = []
    for name in ordered(NAMES, config.order, "data sets"):
        if small:
            split = npz.load(config.model_copy(update={"root": str(root / f"{name}.npz")}))
        else:
            split = _notmnist(root, config) if name == "notmnist" else _download(name, root)
        domains.append(Domain(name, *(_prefixed(images, name) for images in split)))
    return domains


def _prefixed(images: ImageSet, name: str) -> ImageSet:
    return images.renamed([f"{name} {label}" for label in images.classes])


def _download(name: str, root: Path) -> Split:
    sets: dict[str, Callable[[bool], torchvision.datasets.VisionDataset]] = {
        "cifar10": lambda train: torchvision.datasets.CIFAR10(str(root), train=train, download=True),
        "mnist": lambda train: torchvision.datasets.MNIST(str(root), train=train, download=True),
        "svhn": lambda train: torchvision.datasets.SVHN(str(root), split="train" if train else "test", download=True),
        "fashion_mnist": lambda train: torchvision.datasets.FashionMNIST(str(root), train=train, download=True),
    }
    found = []
    for train in (True, False):
        try:
            images = sets[name](train)
        except ImportError as error:  # SVHN is a Matlab file
            raise UserError(f"{name} needs a package that is not installed ({error}); pip install scipy") from error
        except (OSError, RuntimeError, EOFError) as error:
            raise UserError(
                f"{name} is not in {root} and could not be downloaded ({error}); put the files torchvision expects "
                f"there, or {name}.npz for all five, and write data.root={root}"
            ) from error
        pixels = np.asarray(images.data)
        if name == "svhn":
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        labels = np.asarray(images.labels if name == "svhn" else images.targets)
        classes = [label.split(" - ")[0] for label in getattr(images, "classes", "0123456789")]  # "3 - three" in MNIST
        found.append(ImageSet(ArraySource(pixels, f"{name} {'train' if train else 'test'}"), classes, labels))
    return Split(*found)


def _notmnist(root: Path, config: DataConfig) -> Split:
    folder = next((root / name for name in ("notMNIST_small", "notmnist", "notMNIST") if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(f"notMNIST cannot be downloaded; put its folders A to J into {root / 'notMNIST_small'}")
    tree = open_tree(folder, everything=True)
    paths = sorted(p for p in tree.paths if p.count("/") == 1 and p.lower().endswith(".png") and p not in DAMAGED)
    classes = sorted({path[0] for path in paths})
    if not classes:
        raise UserError(f"{folder} has no A/IMAGE.png; put the folders A to J of notMNIST there")
    source = FileSource(paths, tree.read, str(folder), config.cache_mb)
    images = ImageSet(source, classes, [classes.index(path[0]) for path in paths])
    return in_stored_order(images)
