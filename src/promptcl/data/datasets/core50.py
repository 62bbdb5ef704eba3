"""CORe50, 50 objects in 11 sessions: data.root is the folder core50_128x128 (s1/o1/C_01_01_000.png, ...) or its zip.

Domain-incremental as in its NI protocol: sessions 1, 2, 4, 5, 6, 8, 9, 11 are learned in this order, sessions 3, 7 and
10 are the one test set of all.
"""

from __future__ import annotations

import re

from promptcl.config import DataConfig
from promptcl.data.archive import open_tree
from promptcl.data.files import FileSource
from promptcl.data.images import ImageSet
from promptcl.data.splits import Domain, ordered
from promptcl.errors import UserError
from promptcl.runtime import disk

TRAIN, TEST = (1, 2, 4, 5, 6, 8, 9, 11), (3, 7, 10)
FRAME = re.compile(r"(?:^|/)s(\d+)/o(\d+)/([^/]+)\.png$", re.IGNORECASE)


def load_domains(config: DataConfig) -> list[Domain]:
    """One domain for each training session, called s1, s2, s4, ...; all share the test set.

    In the test set the frames of an object alternate between the three sessions, so that test_per_class takes from all.
    Raises UserError: no root, a session without frames.
    """
    if config.root is None:
        raise UserError("data.name=core50 needs data.root=PATH, the folder core50_128x128 or core50_128x128.zip")
    tree = open_tree(disk.expanded(config.root), everything=True)
    frames = [(int(m[1]), int(m[2]), m[3], path) for path in tree.paths if (m := FRAME.search(path))]
    objects = sorted({frame[1] for frame in frames})
    names = ordered([f"s{session}" for session in TRAIN], config.order, "sessions")
    for session in (*(int(name[1:]) for name in names), *TEST):
        if not any(frame[0] == session for frame in frames):
            raise UserError(f"session s{session} has no frames in {tree.where}; expected s{session}/o1/C_..._000.png")
    frames.sort(key=lambda frame: (frame[1], _number(frame[2]), frame[0]))
    source = FileSource([frame[3] for frame in frames], tree.read, str(tree.where), config.cache_mb)
    number = {label: k for k, label in enumerate(objects)}

    def images(sessions: tuple[int, ...]) -> ImageSet:
        chosen = [i for i, frame in enumerate(frames) if frame[0] in sessions]
        return ImageSet(source, [f"o{label}" for label in objects], [number[frames[i][1]] for i in chosen], chosen)

    test = images(TEST)
    return [Domain(name, images((int(name[1:]),)), test) for name in names]


def _number(name: str) -> int:
    """The frame number at the end of C_03_11_042."""
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else 0
