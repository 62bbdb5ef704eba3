"""Food-101, 101 dishes: data.root is food-101 with images/ and meta/train.json, meta/test.json (or downloaded).

Bossard et al. 2014. The official split, 750 training and 250 test images a class. Without data.root the 5 GB are
downloaded to ~/.cache/promptcl.
"""

from __future__ import annotations

import json

import torchvision

from promptcl.config import DataConfig
from promptcl.data.downloads import downloaded
from promptcl.data.lists import Listed, Rows
from promptcl.data.splits import Split
from promptcl.errors import UserError


def load(config: DataConfig) -> Split:
    """Read meta/train.json and meta/test.json: class -> paths below images, without `.jpg`.

    Raises UserError: nothing there and no download, a list that is missing or damaged, an image that is not there.
    """
    config = downloaded(config, "food-101", lambda root: torchvision.datasets.Food101(root, download=True))
    listed = Listed(config, "the folder food-101")
    train = _half(listed, "train.json")
    test = [] if config.validation_per_class is not None else _half(listed, "test.json")
    return listed.split(train, test, sorted({name for _, name in train}))


def _half(listed: Listed, name: str) -> Rows:
    try:
        found = json.loads("\n".join(listed.lines(name)))
        pairs = [(label, str(path)) for label, paths in sorted(found.items()) for path in paths]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{name} in {listed.tree.where} is not the list of Food-101 ({error}); get it again") from error
    folder = f"{listed.file(name).rpartition('/')[0].rpartition('/')[0]}/images".lstrip("/")
    return [(listed.image(f"{path}.jpg", folder), str(label)) for label, path in pairs]
