"""Pictures in any form -> ImageSet: a folder of class folders, an archive, paths, Pillow images, arrays, tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from promptcl.data.archive import ARCHIVES, Tree, open_tree
from promptcl.data.decode import ENDINGS, KINDS, decode, from_array, from_pil
from promptcl.data.images import FileSource, ImageSet
from promptcl.errors import UserError

Picture: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor"
"""A file, its content, a Pillow image, an array (H, W, 3) or a tensor (3, H, W): uint8, or float in [0, 1]."""
Pictures: TypeAlias = "ImageSet | Picture | Sequence[Picture]"
_PARTS = {"train", "test", "val", "valid", "validation"}
_MAX_SIDE = 512


class _Given:
    """Pictures that are in memory."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> Tensor:
        return self._images[row]

    def content(self, row: int) -> bytes:
        return self._images[row].numpy().tobytes()

    def name(self, row: int) -> str:
        return f"picture {row}"


def labelled(pictures: Pictures, labels: Sequence[str] | None = None, cache_mb: int = 2048) -> ImageSet:
    """Pictures with class names: a folder or archive of one folder a class, or pictures and one name for each.

    Classes are sorted by name, files by path.
    Raises UserError: no class folders, a class without pictures, labels that do not fit.
    """
    if isinstance(pictures, ImageSet):
        return pictures
    if labels is not None:
        images = unlabelled(pictures, cache_mb)
        names = [str(label) for label in labels]
        if len(names) != len(images):
            raise UserError(f"{len(images)} pictures came with {len(names)} labels; give one class name for each")
        classes = sorted(set(names))
        return images.labelled(classes, [classes.index(name) for name in names])
    if not isinstance(pictures, str | Path):
        raise UserError("these pictures have no labels; give labels=[...], or a folder with one folder for each class")
    return _class_folders(open_tree(Path(pictures).expanduser(), everything=True), cache_mb)


def unlabelled(pictures: Pictures, cache_mb: int = 2048) -> ImageSet:
    """One picture, several, or all below a folder or in an archive; the labels of the set mean nothing.

    Raises UserError: nothing there, no pictures, a picture of a wrong type, shape or range.
    """
    if isinstance(pictures, ImageSet):
        return pictures
    if isinstance(pictures, str | Path):
        path = Path(pictures).expanduser()
        if path.is_dir() or path.name.lower().endswith(ARCHIVES):
            tree = open_tree(path, everything=True)
            files = [file for file in sorted(tree.paths) if _is_picture(file)]
            if not files:
                raise UserError(f"{path} has no pictures in it; expected files of the kinds {KINDS}")
            return _unnamed(FileSource(files, tree.read, str(path), cache_mb))
        pictures = [path]
    elif isinstance(pictures, bytes | Image.Image):
        pictures = [pictures]
    elif isinstance(pictures, np.ndarray | Tensor):
        pictures = list(pictures) if pictures.ndim == 4 else [pictures]
    if not len(pictures):
        raise UserError("no pictures were given; expected at least one")
    if all(isinstance(picture, str | Path) for picture in pictures):
        paths = [str(Path(str(picture)).expanduser()) for picture in pictures]
        if missing := next((path for path in paths if not Path(path).is_file()), None):
            raise UserError(f"{missing}: there is no such file; expected a {KINDS}, or a folder of them")
        return _unnamed(FileSource(paths, lambda path: Path(path).read_bytes(), cache_mb=cache_mb))
    return _unnamed(_Given([_pixels(picture, row) for row, picture in enumerate(pictures)]))


def _unnamed(source: Any) -> ImageSet:
    return ImageSet(source, [""], np.zeros(len(source), dtype=np.int64))


def _pixels(picture: Any, row: int) -> Tensor:
    try:
        if isinstance(picture, str | Path):
            picture = Path(picture).expanduser().read_bytes()
        if isinstance(picture, bytes):
            return decode(picture, _MAX_SIDE)
        if isinstance(picture, Image.Image):
            return from_pil(picture, _MAX_SIDE)
        if isinstance(picture, np.ndarray | Tensor):
            return from_array(picture, _MAX_SIDE)
    except Exception as error:  # Pillow's decoders raise about anything
        raise UserError(f"picture {row} is none ({error}); give a {KINDS}, a Pillow image or an array") from error
    raise UserError(f"picture {row} is a {type(picture).__name__}; give a path, bytes, a Pillow image or an array")


def _is_picture(path: str) -> bool:
    parts = path.split("/")
    return path.lower().endswith(ENDINGS) and not any(part.startswith(".") for part in parts)


def _class_folders(tree: Tree, cache_mb: int) -> ImageSet:
    """One folder a class; one folder around all of them is allowed in an archive."""
    paths = sorted(path for path in tree.paths if path)
    prefix = ""
    tops = {path.split("/")[0] for path in paths if "/" in path}
    depths = {path.count("/") for path in paths if _is_picture(path)}
    # Around all of them: no picture lies directly in it.
    if tree.where.is_file() and len(tops) == 1 and depths and min(depths) > 1:
        prefix = f"{tops.pop()}/"
    classes: dict[str, list[str]] = {}
    for path in paths:
        name, slash, file = path.removeprefix(prefix).partition("/")
        if not path.startswith(prefix) or not slash or name.startswith("."):
            continue
        files = classes.setdefault(name, [])
        if file and _is_picture(path):
            files.append(path)
    _check(tree, classes)
    names = sorted(classes)
    files = [path for name in names for path in classes[name]]
    labels = np.repeat(np.arange(len(names)), [len(classes[name]) for name in names])
    return ImageSet(FileSource(files, tree.read, str(tree.where), cache_mb), names, labels)


def _check(tree: Tree, classes: dict[str, list[str]]) -> None:
    if not classes:
        raise UserError(
            f"{tree.where} has no class folders; expected one for each class, {tree.where}/CLASS/PICTURE.jpg"
        )
    if classes.keys() <= _PARTS:
        part = "train" if "train" in classes else min(classes)
        raise UserError(f"{tree.where} holds {', '.join(sorted(classes))} and no classes; give {tree.where}/{part}")
    if empty := next((name for name, files in sorted(classes.items()) if not files), None):
        raise UserError(f"class '{empty}' in {tree.where} has no pictures; add a {KINDS}, or remove its folder")
    for name in classes:
        if not name.isprintable():  # which bytes that are no UTF-8 are not
            raise UserError(f"the class folder {name!a} in {tree.where} has unprintable characters; rename it")


ImagesLike = Pictures
