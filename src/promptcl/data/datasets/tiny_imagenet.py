"""Tiny-ImageNet, 200 classes of 64 x 64 photos: data.root is tiny-imagenet-200 or its .zip (with val_annotations.txt).

From the Stanford course CS231n. 500 training images a class are in train/n01443537/images; the labelled validation
images, 50 a class, are the test set, since the classes of the test images were never published. Classes are called by
their WordNet ids, in ascending order.
"""

from __future__ import annotations

import re

from promptcl.config import DataConfig
from promptcl.data.kinds import is_image
from promptcl.data.lists import Listed
from promptcl.data.splits import Split
from promptcl.errors import UserError

_TRAIN = re.compile(r"(?:^|/)train/(n\d{8})/(?:images/)?[^/]+$")


def load(config: DataConfig) -> Split:
    """Training images by their folders, test images by val_annotations.txt: file, class, and a box.

    Raises UserError: no root, no training images, no list, an image that is not there.
    """
    listed = Listed(config, "the folder tiny-imagenet-200 or tiny-imagenet-200.zip")
    found = ((path, _TRAIN.search(path)) for path in sorted(listed.tree.paths) if is_image(path))
    train = [(path, match[1]) for path, match in found if match is not None]
    if not train:
        raise UserError(f"{listed.tree.where} has no train/n01443537/images; expected {listed.what}")
    test = []
    if config.validation_per_class is None:
        folder = listed.beside("val_annotations.txt", "images")
        rows = (line.split("\t") for line in listed.lines("val_annotations.txt"))
        test = [(listed.image(row[0], folder), row[1]) for row in rows if len(row) > 1]
    return listed.split(train, test, sorted({name for _, name in train}))
