"""ImageNet-R, renditions of 200 ImageNet classes: data.root is imagenet-r or imagenet-r.tar (n01443537/art_0.jpg, ...).

Hendrycks et al. 2021, arXiv 2006.16241. It has no split of its own, and users differ: L2P and DualPrompt take the first
80 % of the order in which TensorFlow Datasets stores it, PyTorch ports of DualPrompt a random split a machine,
CODA-Prompt fixed lists, LAMDA's toolboxes folders `train` and `test`. Read here: such folders; CODA-Prompt's
imagenet-r_train.yaml and imagenet-r_test.yaml; lists train.txt and test.txt (also imagenet-r_train.txt, ...) with the
lines `path label`; else the first 80 % of each class, sorted by path, are training. Numbers are comparable only over
one split. Classes are called by their WordNet ids.
"""

from __future__ import annotations

import re

from promptcl.config import DataConfig
from promptcl.data.kinds import is_image
from promptcl.data.lists import Listed, Rows
from promptcl.data.splits import Split, in_stored_order
from promptcl.errors import UserError

_LIST = re.compile(r"(?:^|.*[-_.])(train|test)(?:[-_]?list)?\.txt$|imagenet-r_(train|test)\.ya?ml$", re.IGNORECASE)
_IMAGE = re.compile(r"(?:^|/)(?:(train|test)/)?(n\d{8})/[^/]+$")


def load(config: DataConfig) -> Split:
    """The split of the lists, or of the folders, or the first 80 % of each class.

    Raises UserError: no root, no images, lists of two splits, one list without the other, images that are not there.
    """
    listed = Listed(config, "the folder imagenet-r or imagenet-r.tar")
    found = [m for path in sorted(listed.tree.paths) if (m := _LIST.match(path.rpartition("/")[2]))]
    lists = {(m[1] or m[2]).lower(): m[0] for m in found}
    if lists:
        if len(lists) < 2:
            raise UserError(
                f"{listed.tree.where} has {min(lists.values())} alone; expected a list of train and of test"
            )
        if len({m[0] for m in found}) > 2 or lists["train"].lower().replace("train", "test") != lists["test"].lower():
            names = ", ".join(sorted({m[0] for m in found}))
            raise UserError(f"{listed.tree.where} has lists of several splits ({names}); leave one train and one test")
        halves = {part: [row[:2] for row in listed.path_and_label(name)] for part, name in lists.items()}
        return listed.split(halves["train"], halves["test"], sorted({name for _, name in halves["train"]}))
    parts: dict[str, Rows] = {"train": [], "test": [], "": []}
    for path in sorted(listed.tree.paths):
        if is_image(path) and (m := _IMAGE.search(path)):
            parts[m[1] or ""].append((path, m[2]))
    if parts["train"] and parts["test"]:
        return listed.split(parts["train"], parts["test"], sorted({name for _, name in parts["train"]}))
    rows = sorted(row for part in parts.values() for row in part)
    if not rows:
        raise UserError(f"{listed.tree.where} has no n01443537/IMAGE.jpg and the like; expected {listed.what}")
    whole = listed.split(rows, [], sorted({name for _, name in rows})).train
    return in_stored_order(whole)
