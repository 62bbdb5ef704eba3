"""Your own images: a folder or .tar/.tar.gz/.tgz/.zip with train/CLASS/... and test/CLASS/... (data.root=PATH).

The ImageFolder layout of torchvision; png, jpg, webp, bmp, gif and tiff count as images, other files are ignored.
One folder around `train` and `test` is allowed. Classes are sorted by name, images by path.
"""

from __future__ import annotations

import numpy as np

from promptcl.config import DataConfig
from promptcl.data.archive import Tree, open_tree
from promptcl.data.decode import ENDINGS
from promptcl.data.images import FileSource, ImageSet
from promptcl.data.splits import Split
from promptcl.errors import UserError
from promptcl.runtime import disk


def load(config: DataConfig) -> Split:
    """Read the folder or archive `config.root`; test is empty where validation_per_class makes it needless.

    Raises UserError: no root, not a folder or an archive, no train or test folder, no class folders.
    """
    if config.root is None:
        raise UserError("data.name=folder needs data.root=PATH, a folder or an archive with train/CLASS/... images")
    tree = open_tree(disk.expanded(config.root))
    prefix = _prefix(tree)
    train = _classes(tree, f"{prefix}train/")
    test = {} if config.validation_per_class is not None else _classes(tree, f"{prefix}test/")
    paths = [path for files in (*train.values(), *test.values()) for path in files]
    source = FileSource(paths, tree.read, str(tree.where), config.cache_mb)  # one source: one memory budget
    sizes = [len(files) for files in train.values()]
    cut = sum(sizes)
    return Split(
        ImageSet(source, list(train), np.repeat(np.arange(len(train)), sizes), np.arange(cut)),
        ImageSet(
            source,
            list(test),
            np.repeat(np.arange(len(test)), [len(files) for files in test.values()]),
            np.arange(cut, len(paths)),
        ),
    )


def _prefix(tree: Tree) -> str:
    """What stands in front of "train/": nothing, or the one folder that everything is in."""
    if any(path.startswith("train/") for path in tree.paths):
        return ""
    split = (path.split("/") for path in tree.paths)
    tops = sorted({names[0] for names in split if names[1:2] == ["train"] and len(names) > 2})
    if not tops:
        raise UserError(f"{tree.where} has no train folder; expected train/CLASS/... and test/CLASS/... in it")
    if len(tops) > 1:
        raise UserError(f"{tree.where} has several data sets ({', '.join(tops)}); give one of them as data.root")
    return f"{tops[0]}/"


def _classes(tree: Tree, folder: str) -> dict[str, list[str]]:
    """Sorted paths of the images of each class; a class folder without images has an empty list."""
    if not any(path.startswith(folder) for path in tree.paths):
        raise UserError(f"{tree.where} has no folder {folder[:-1]}; expected one folder for each class in it")
    classes: dict[str, list[str]] = {}
    for path in sorted(tree.paths):
        name, slash, file = path[len(folder) :].partition("/")
        if not path.startswith(folder) or not slash or name.startswith("."):
            continue
        files = classes.setdefault(name, [])
        if file.lower().endswith(ENDINGS) and not file.rsplit("/", 1)[-1].startswith("."):
            files.append(path)
    if not classes:
        raise UserError(f"{tree.where} has no class folders in {folder[:-1]}; expected {folder}CLASS/IMAGE.png")
    return dict(sorted(classes.items()))
