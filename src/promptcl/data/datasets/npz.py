"""One .npz file with the keys of MedMNIST: train_images, train_labels, test_images, test_labels (data.root=FILE).

Images are uint8, (N, H, W) or (N, H, W, 3); labels are integers, (N,) or (N, 1). Classes are called by their number,
or by the optional array `class_names` that the labels then index. val_images and val_labels are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from promptcl.config import DataConfig
from promptcl.data.images import ArraySource, ImageSet
from promptcl.data.splits import Split
from promptcl.errors import UserError
from promptcl.runtime import disk, packed


def load(config: DataConfig) -> Split:
    """Read the file `config.root`; test is empty where validation_per_class makes it needless.

    Raises UserError: no root, no such file, not an npz, a missing key, a wrong shape or type.
    """
    if config.root is None:
        raise UserError("data.name=npz needs data.root=FILE, an .npz with train_images, train_labels, test_images, ...")
    file = disk.expanded(config.root)
    if not file.is_file():
        raise UserError(f"data.root={file} does not exist or is not a file; expected an .npz file")
    train = _half(file, "train")
    return Split(train, train.select([]) if config.validation_per_class is not None else _half(file, "test"))


def _half(file: Path, split: str) -> ImageSet:
    """The `train` or `test` images of the file, checked."""
    images, labels = _read(file, f"{split}_images"), _read(file, f"{split}_labels")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise UserError(
            f"{split}_images in {file} is {images.dtype} {images.shape}; expected uint8 (N, H, W) or (N, H, W, 3)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((len(images),), (len(images), 1)):
        raise UserError(
            f"{split}_labels in {file} is {labels.dtype} {labels.shape}; expected one integer for each of the "
            f"{len(images)} images"
        )
    numbers, labels = np.unique(labels.reshape(-1), return_inverse=True)
    source = ArraySource(images, f"{file}: {split}_images")
    names = _read(file, "class_names", optional=True)
    if names is None:
        return ImageSet(source, [str(number) for number in numbers], labels)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"class_names in {file} is {names.dtype} {names.shape}; expected a list of strings")
    if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < len(names):
        raise UserError(
            f"{split}_labels in {file} go from {numbers[0]} to {numbers[-1]} but it has {len(names)} class_names"
        )
    return ImageSet(source, [str(name) for name in names], numbers[labels])


def _read(file: Path, key: str, optional: bool = False) -> Any:
    """The array `key`, or None if it is optional and missing."""
    try:
        packed.check_zip(file)
        with np.load(file, allow_pickle=False) as arrays:
            if key in arrays:
                array: npt.NDArray[Any] = arrays[key]
                if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is none
                    raise ValueError(f"{key} is no array")
                return array
            keys = ", ".join(arrays)
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise about anything on damaged files, MemoryError included
        raise UserError(f"{file} is not a readable .npz of plain arrays ({error}); get or write it again") from error
    if optional:
        return None
    raise UserError(f"{file} has no array {key} (it has {keys}); expected the keys of MedMNIST, such as {key}")
