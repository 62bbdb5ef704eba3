"""A learner's folder on disk: written whole or not at all, by one process at a time."""

from promptcl.store.files import Absent
from promptcl.store.folder import (
    OWN,
    ChangeRecord,
    Saved,
    TaskRecord,
    check_backbone,
    checksum,
    fill,
    load,
    open_checkpoint,
    save,
    with_absolute_paths,
)
from promptcl.store.lock import lock

__all__ = [
    "OWN",
    "Absent",
    "ChangeRecord",
    "Saved",
    "TaskRecord",
    "check_backbone",
    "checksum",
    "fill",
    "load",
    "lock",
    "open_checkpoint",
    "save",
    "with_absolute_paths",
]
