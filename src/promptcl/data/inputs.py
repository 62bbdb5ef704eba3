"""Turn images in any form into an ImageSet: folders, archives, paths, bytes, Pillow images, arrays, tensors."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from promptcl.data.archive import ARCHIVES, MAX_FILE, Tree, open_tree
from promptcl.data.classes import but, left_out, no_images, read_classes
from promptcl.data.decode import decode, from_array, from_pil, largest_of
from promptcl.data.deep import Depth
from promptcl.data.files import FileSource
from promptcl.data.images import ImageSet
from promptcl.data.kinds import KINDS, is_image
from promptcl.data.levels import Level
from promptcl.data.names import LabelsLike, numbered
from promptcl.errors import UserError
from promptcl.runtime import disk

ImageLike: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor"
"""A file, its content, a Pillow image, an array (H, W, 3) or a tensor (3, H, W): uint8, or float in [0, 1]."""
ImagesLike: TypeAlias = "ImageSet | ImageLike | Sequence[ImageLike]"
"""One image or several in any form; a path may also be a folder or an archive."""
Images = TypeVar("Images", bound=Sized)
_MAX_SIDE = 512  # pixels: larger images are reduced


class _Given:
    """A source of images that are in memory."""

    def __init__(self, images: Sequence[Any]) -> None:
        # Of those of more than 8 bits the depth is known only once all are there.
        self._given = [image if isinstance(image, bytes | Image.Image) else None for image in images]
        self.depth = Depth(lambda: (None if image is None else largest_of(image) for image in self._given))
        self._images = [_pixels(image, row, self.depth) for row, image in enumerate(images)]

    def assume(self, bits: int, at_least: bool = False) -> None:
        if self.depth.assume(bits, at_least):
            for row, image in enumerate(self._given):
                if image is not None:
                    self._images[row] = _pixels(image, row, self.depth)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, row: int) -> Tensor:
        return self._images[row]

    def content(self, row: int) -> bytes:
        return self._images[row].numpy().tobytes()

    def name(self, row: int) -> str:
        return f"image {row}"


def labelled(images: ImagesLike, labels: LabelsLike | None = None, cache_mb: int = 2048) -> ImageSet:
    """Make a set of images with class names: from a folder or archive with one folder a class, or from images and
    one name or whole number for each in `labels`.

    Classes are sorted by name, files by path. Decoded images stay in memory up to `cache_mb` MiB. `notes` of the set
    says what was left out of a folder.
    Raises UserError: no class folders, a class without images, labels that do not fit.
    """
    if labels is not None:
        found = unlabelled(images, cache_mb)
        classes, numbers = numbered(labels)
        if len(numbers) != len(found):
            raise UserError(f"{len(found)} images came with {len(numbers)} labels; give one class name for each")
        return found.labelled(classes, numbers)
    if isinstance(images, ImageSet):
        return some(images)
    if not isinstance(images, str | Path):
        raise UserError("these images have no labels; give labels=[...], or a folder with one folder for each class")
    return _class_folders(open_tree(disk.expanded(images), everything=True), cache_mb)


def unlabelled(images: ImagesLike, cache_mb: int = 2048) -> ImageSet:
    """Make a set of one image, of several, or of all below a folder or in an archive; its labels mean nothing.

    Decoded images stay in memory up to `cache_mb` MiB.
    Raises UserError: nothing there, no images, an image of a wrong type, shape or range.
    """
    if isinstance(images, ImageSet):
        return some(images)
    if isinstance(images, str | Path):
        path = disk.expanded(images)
        if path.is_dir() or path.name.lower().endswith(ARCHIVES):
            return _all_below(path, cache_mb)
        images = [path]
    elif isinstance(images, bytes | Image.Image):
        images = [images]
    elif isinstance(images, np.ndarray | Tensor):
        images = list(images) if images.ndim == 4 else [images]
    some(images)
    if all(isinstance(image, str | Path) for image in images):
        paths = [str(disk.expanded(str(image))) for image in images]
        if missing := next((path for path in paths if not Path(path).is_file()), None):
            raise UserError(f"{missing}: there is no such file; expected a {KINDS}, or a folder of them")
        return _unnamed(FileSource(paths, lambda path: disk.read(path, MAX_FILE), cache_mb=cache_mb))
    return _unnamed(_Given(images))


def some(images: Images) -> Images:
    """The same images. Raises UserError where there is none."""
    if not len(images):
        raise UserError("no images were given; expected at least one")
    return images


def _all_below(path: Path, cache_mb: int) -> ImageSet:
    tree = open_tree(path, everything=True)
    files = [file for file in sorted(tree.paths) if is_image(file)]
    if not files:
        raise UserError(f"{path} has no images in it; expected files of the kinds {KINDS}{but(tree)}")
    images = _unnamed(FileSource(files, tree.read, str(path), cache_mb))
    images.notes = tuple(left_out(tree, files))
    return images


def _unnamed(source: Any) -> ImageSet:
    return ImageSet(source, [""], np.zeros(len(source), dtype=np.int64))


def _pixels(image: Any, row: int, depth: Depth) -> Tensor:
    """Pixels of one image in any form, uint8 (3, H, W); `row` is its number for an error message."""
    try:
        if isinstance(image, str | Path):
            image = disk.read(disk.expanded(image), MAX_FILE)
        if isinstance(image, bytes):
            return decode(image, _MAX_SIDE, depth.largest)
        if isinstance(image, Image.Image):
            return from_pil(image, _MAX_SIDE, depth.largest)
        if isinstance(image, np.ndarray | Tensor):
            return from_array(image, _MAX_SIDE)
    except Exception as error:  # Pillow's decoders raise about anything
        raise UserError(f"image {row} is none ({error}); give a {KINDS}, a Pillow image or an array") from error
    raise UserError(f"image {row} is a {type(image).__name__}; give a path, bytes, a Pillow image or an array")


def _class_folders(tree: Tree, cache_mb: int) -> ImageSet:
    """The images of a folder or archive with one folder a class, which may be inside others that wrap nothing else."""
    notes: list[str] = []
    classes = read_classes(tree, Level(tree.paths), notes)
    if empty := next((name for name, files in classes.items() if not files), None):
        raise no_images(tree, empty)
    files = [path for paths in classes.values() for path in paths]
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    images = ImageSet(FileSource(files, tree.read, str(tree.where), cache_mb), list(classes), labels)
    images.notes = (*notes, *left_out(tree, files, everything=True))
    return images
