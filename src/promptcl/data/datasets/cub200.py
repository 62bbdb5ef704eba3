"""CUB-200-2011, 200 kinds of birds: data.root is CUB_200_2011 or its .tgz, with images.txt, train_test_split.txt, ...

Wah et al. 2011. The official split, 5,994 training and 5,794 test images, is that of train_test_split.txt; classes are
called by their folders, in the order of image_class_labels.txt (`001.Black_footed_Albatross`, ...).
"""

from __future__ import annotations

from promptcl.config import DataConfig
from promptcl.data.lists import Listed
from promptcl.data.splits import Split
from promptcl.errors import UserError


def load(config: DataConfig) -> Split:
    """Read images.txt, image_class_labels.txt and train_test_split.txt, each with the number of the image first.

    Raises UserError: no root, a list that is missing or does not have every image, an image that is missing.
    """
    listed = Listed(config, "the folder CUB_200_2011 or CUB_200_2011.tgz")
    files = listed.pairs("images.txt")
    labels = listed.pairs("image_class_labels.txt")
    trained = listed.pairs("train_test_split.txt")
    numbered = {n for n, label in labels.items() if label.isdecimal() and len(label) < 10}
    odd = [n for n in files if n not in numbered or trained.get(n) not in ("0", "1")]
    if odd:
        raise UserError(
            f"image {odd[0][:20]} of images.txt in {config.root} has no class or no split; get the lists again"
        )
    folder = listed.beside("images.txt", "images")
    rows = {n: (listed.image(path, folder), path.split("/")[0]) for n, path in files.items()}
    named = {int(labels[n]): rows[n][1] for n in rows}
    train, test = ([rows[n] for n in rows if trained[n] == part] for part in ("1", "0"))
    return listed.split(train, test, [named[label] for label in sorted(named)])
