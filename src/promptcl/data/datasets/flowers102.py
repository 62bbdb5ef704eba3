"""Flowers-102, 102 flowers: data.root is flowers-102 with jpg/, imagelabels.mat and setid.mat (or downloaded).

Nilsback & Zisserman 2008. The official split: 1,020 training images (`trnid`) and 6,149 test images (`tstid`); the
1,020 validation images are not used. Without data.root the 350 MB are downloaded to ~/.cache/promptcl.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torchvision

from promptcl.config import DataConfig
from promptcl.data.downloads import downloaded
from promptcl.data.lists import Listed
from promptcl.data.splits import Split
from promptcl.errors import UserError


def load(config: DataConfig) -> Split:
    """Read the numbers of the images of each half, and of their classes, from the Matlab files.

    Raises UserError: nothing there and no download, scipy is missing, a file that is missing or damaged.
    """
    config = downloaded(config, "flowers-102", lambda root: torchvision.datasets.Flowers102(root, download=True))
    listed = Listed(config, "the folder flowers-102")
    labels, sets = _read(listed, "imagelabels.mat"), _read(listed, "setid.mat")
    try:
        numbers: npt.NDArray[np.int64] = labels["labels"].reshape(-1).astype(np.int64)
        halves = [sets[key].reshape(-1).astype(np.int64) for key in ("trnid", "tstid")]
        chosen = [[(int(i), int(numbers[i - 1])) for i in half] for half in halves]
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise UserError(f"{listed.tree.where} does not hold the Matlab files of Flowers-102 ({error})") from error
    names = getattr(torchvision.datasets.Flowers102, "classes", ())
    known = sorted({label for half in chosen for _, label in half})
    called = {label: names[label - 1] if 0 < label <= len(names) else str(label) for label in known}
    rows = [[(listed.image(f"jpg/image_{i:05}.jpg"), called[label]) for i, label in half] for half in chosen]
    return listed.split(rows[0], rows[1], [called[label] for label in known])


def _read(listed: Listed, name: str) -> dict[str, Any]:
    """The arrays of a Matlab file."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(
            f"data.name=flowers102 needs a package that is not installed ({error}); pip install scipy"
        ) from error
    path = listed.file(name)
    try:
        found: dict[str, Any] = loadmat(io.BytesIO(listed.tree.read(path)), squeeze_me=False)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{listed.tree.where}/{path} is no readable Matlab file ({error}); get it again") from error
    return found
