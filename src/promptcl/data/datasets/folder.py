"""Your own images: a folder or .tar/.tar.gz/.tgz/.zip with train/CLASS/... and test/CLASS/... (data.root=PATH).

The ImageFolder layout of torchvision. Folders may be called Training, seg_train, valid and the like, and be inside
others; validation images take the place of test images that are missing. Files of other kinds are left out. Classes are
sorted by name, images by path. Tiny-ImageNet's val_annotations.txt is read.
"""

from __future__ import annotations

import numpy as np

from promptcl.config import DataConfig
from promptcl.data.archive import Tree, open_tree
from promptcl.data.classes import ANNOTATIONS, left_out, read_classes
from promptcl.data.files import FileSource
from promptcl.data.images import ImageSet
from promptcl.data.levels import Level, opened, plain_images, splits_among
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
    level = _level(tree)
    notes: list[str] = []
    folders = [str(_folder(tree, level, "train"))]
    train, test = _classes(tree, level.inside(folders[0]), notes), dict[str, list[str]]()
    if config.validation_per_class is None:
        folders.append(_tested(tree, level, notes))
        test = _classes(tree, level.inside(folders[1]), notes)
    paths = [path for files in (*train.values(), *test.values()) for path in files]
    source = FileSource(paths, tree.read, str(tree.where), config.cache_mb)  # one source: one memory budget
    cut = sum(len(files) for files in train.values())
    halves = _half(source, train, 0), _half(source, test, cut)
    within = tuple(f"{level.folder}{name}/" for name in folders)
    inside = [path for path in tree.paths if path.startswith(within)]
    lost = {path: why for path, why in tree.lost.items() if path.startswith(within)}
    notes += left_out(Tree(tree.where, inside, tree.read, lost, tree.skipped), paths)
    for half in halves:
        half.notes = tuple(notes)
    return Split(*halves)


def _half(source: FileSource, classes: dict[str, list[str]], start: int) -> ImageSet:
    """The images of some classes, which are the rows of the source from `start` on."""
    sizes = [len(files) for files in classes.values()]
    return ImageSet(source, list(classes), np.repeat(np.arange(len(classes)), sizes), np.arange(sum(sizes)) + start)


def _level(tree: Tree) -> Level:
    """The level in which the folders of the splits are: the top, or inside folders around everything."""
    level = Level(tree.paths)
    while "train" not in splits_among(level.folders).values():
        inner = [level.inside(name) for name in sorted(level.folders)]
        if len(inner) > 1:
            inner = [one for one in inner if "train" in splits_among(one.folders).values()]
        if len(inner) > 1:
            tops = ", ".join(one.folder.rstrip("/") for one in inner)
            raise UserError(f"{tree.where} has several data sets ({tops}); give one of them as data.root")
        if not inner:
            here = ", ".join(sorted(level.folders)[:8]) or "no folder"
            raise UserError(
                f"{tree.where} has no train folder; expected train/CLASS/... and test/CLASS/... in it, found {here}"
            )
        level = inner[0]
    return level


def _folder(tree: Tree, level: Level, split: str) -> str | None:
    """The name of the folder of a split, None where there is none. Raises UserError where there are several."""
    names = [name for name, what in splits_among(level.folders).items() if what == split]
    plain = [name for name in names if name.lower() == split] or names
    if len(plain) > 1:
        raise UserError(
            f"{tree.where} has several {split} folders ({', '.join(sorted(plain))}); leave one, or call one {split}"
        )
    return plain[0] if plain else None


def _tested(tree: Tree, level: Level, notes: list[str]) -> str:
    """The name of the folder of test images: of the test split, or where that has no classes of the validation split.

    Raises UserError where there is neither.
    """
    test, val = _folder(tree, level, "test"), _folder(tree, level, "val")
    if test is not None and (val is None or _has_classes(level.inside(test))):
        return test
    if val is None:
        raise UserError(f"{tree.where} has no folder test; expected one folder for each class in it")
    why = "has no folder test" if test is None else f"has no classes in its folder {test}"
    notes.append(f"{tree.where} {why}: its folder {val} takes the place of the test images")
    return val


def _has_classes(level: Level) -> bool:
    """Whether a folder has images in folders of classes, or a list of their classes."""
    level = opened(level)
    return f"{level.folder}{ANNOTATIONS}" in level.files or (bool(level.below) and not plain_images(level))


def _classes(tree: Tree, level: Level, notes: list[str]) -> dict[str, list[str]]:
    """Sorted paths of the images of each class; a class folder without images has an empty list."""
    if not level.folders:
        raise UserError(
            f"{tree.where} has no class folders in {level.folder[:-1]}; expected {level.folder}CLASS/IMAGE.png"
        )
    return read_classes(tree, level, notes)
