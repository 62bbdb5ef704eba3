"""EuroSAT, ten kinds of land from a satellite: data.root is 2750 (AnnualCrop/AnnualCrop_1.jpg, ...) or EuroSAT.zip.

Helber et al. 2019, arXiv 1709.00029; the RGB version. It has no split of its own; the first 80 % of each class, in the
order of their numbers, are training (the paper splits at random, 80 to 20). Without data.root torchvision downloads the
90 MB to ~/.cache/promptcl.
"""

from __future__ import annotations

import re

import torchvision

from promptcl.config import DataConfig
from promptcl.data.downloads import downloaded
from promptcl.data.kinds import is_image
from promptcl.data.lists import Listed
from promptcl.data.splits import Split, in_stored_order
from promptcl.errors import UserError

_IMAGE = re.compile(r"(?:^|/)([A-Za-z]+)/\1_(\d+)\.[a-z]+$")


def load(config: DataConfig) -> Split:
    """The first 80 % of each class and the rest. Raises UserError: nothing there and no download, no images."""
    config = downloaded(config, "eurosat", lambda root: torchvision.datasets.EuroSAT(root, download=True))
    listed = Listed(config, "the folder 2750 of EuroSAT or EuroSAT.zip")
    found = ((path, _IMAGE.search(path)) for path in listed.tree.paths if is_image(path))
    rows = sorted((match[1], int(match[2]), path) for path, match in found if match is not None)
    if not rows:
        raise UserError(f"{listed.tree.where} has no AnnualCrop/AnnualCrop_1.jpg and the like; expected {listed.what}")
    classes = sorted({name for name, _, _ in rows})
    return in_stored_order(listed.split([(path, name) for name, _, path in rows], [], classes).train)
