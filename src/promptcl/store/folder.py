"""A learner's folder: `learner.json` and `state-<hash>.safetensors`. The format is in docs/store.md."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError
from torch import Tensor, nn

from promptcl.config.schema import Config, Section
from promptcl.data.images import ImageSet
from promptcl.errors import UserError
from promptcl.layers.sums import packed
from promptcl.recipes.load import resolve
from promptcl.runtime import disk, processes
from promptcl.store import files
from promptcl.store.checkpoint import Checkpoint, discard
from promptcl.store.files import Absent
from promptcl.store.lock import lock

__all__ = ["FORMAT", "OWN", "Absent", "ChangeRecord", "Saved", "TaskRecord", "load", "lock", "save"]

FORMAT = 2
KIND = files.Kind("promptcl store", FORMAT, "take a copy of it that is whole")
OWN = ("optimizer.", "memory.", "images.")
"""Beginnings of the names of tensors that are the learner's own, not its method's."""
_NO_FILE = ("hub", "random", "embedded")
_MAY_CHANGE = (
    "device",
    "backbone.weights",
    "backbone.precision",
    "backbone.activation_checkpointing",
    "train.",
    "eval.",
    "data.",
    "memory.",
)


Count = Annotated[int, Field(ge=0, le=2**53)]


class TaskRecord(Section):
    """What a learner records about one task that it has learned."""

    name: str
    when: str
    """Time at which it was learned, UTC, ISO 8601."""
    images: dict[str, Count]
    """Images of each class, in the order in which new classes were added."""
    seconds: Annotated[float, Field(ge=0, le=1e12)]
    sha256: str
    """Hash of the images and their labels (ImageSet.sha256) as they were learned, before any change."""

    @classmethod
    def of(cls, name: str, images: ImageSet, seconds: float, sha256: str) -> TaskRecord:
        """Make the record of `images` that were learned just now."""
        counts = np.bincount(images.labels, minlength=len(images.classes)).tolist()
        per_class = dict(zip(images.classes, counts, strict=True))
        return cls(name=name, when=_now(), images=per_class, seconds=seconds, sha256=sha256)


Kind = Literal["forget", "rename", "undo", "correct"]


class ChangeRecord(Section):
    """What a learner records about one change to what it had learned."""

    what: Kind
    when: str
    """Time of the change, UTC, ISO 8601."""
    names: list[str]
    """Classes forgotten; old and new name; the name of the task undone; the class that images were moved to."""
    images: Count
    """Images that were taken away, or whose class is another one now."""

    @classmethod
    def of(cls, what: Kind, names: Sequence[str], images: int) -> ChangeRecord:
        """Make the record of a change made just now."""
        return cls(what=what, when=_now(), names=list(names), images=images)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class _Document(Section):
    """The fields of learner.json beside `state` and `checksum`."""

    format: int
    promptcl: str
    config: dict[str, Any]
    backbone: dict[str, Any]
    classes: list[str]
    tasks: list[TaskRecord]
    notes: dict[str, Any] = Field(default_factory=dict)
    changes: list[ChangeRecord] = Field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """All that a learner's folder holds."""

    config: Config
    backbone: dict[str, Any]
    """`Backbone.describe()` of the backbone it was learned with."""
    classes: list[str]
    tasks: list[TaskRecord]
    notes: dict[str, Any]
    """JSON values that other packages keep with the learner."""
    state: dict[str, Tensor]
    checksum: str = ""
    """Checksum of all of the above, as written."""
    format: int = FORMAT
    changes: list[ChangeRecord] = field(default_factory=list)
    """Changes made to what had been learned, in order."""


def save(folder: Path, saved: Saved, ancestors: Collection[str]) -> str:
    """Replace the learner in `folder` (made if need be) by `saved` or leave it as it was; returns the checksum.

    ancestors: checksums of the stores that `saved` descends from, as loaded or saved before.
    Raises UserError: the folder holds another learner or was changed since, another process writes to it, no
    permission, no space.
    """
    document = _Document(
        format=FORMAT,
        promptcl=version("promptcl"),
        config=with_absolute_paths(saved.config).model_dump(mode="json"),
        backbone=saved.backbone,
        classes=saved.classes,
        tasks=saved.tasks,
        notes=saved.notes,
        changes=saved.changes,
    )
    if not _agrees(document):
        raise UserError(f"{folder} was not written: the classes of this learner are not those of its history")
    with lock(folder):
        if (found := checksum(folder)) is not None and found not in ancestors:
            raise UserError(
                f"{folder} holds a learner that this one does not descend from (checksum {found[:8]}): "
                "load it again and repeat, or save to another folder"
            )
        written = files.write_pair(folder / "learner.json", document.model_dump(mode="json"), saved.state)
        discard(folder)  # its task is finished, or was given up for what is saved now
    return written


def _agrees(document: _Document) -> bool:
    """Whether its classes are those of its tasks, in the order in which they were learned, and can be printed."""
    learned = list(dict.fromkeys(name for task in document.tasks for name in task.images))
    return document.classes == learned and all(name.isprintable() for name in learned)


def load(folder: Path, overrides: Sequence[str] = (), trust: bool = False) -> Saved:
    """Read and check the learner in `folder`; nothing in it is ever executed.

    overrides: key=value settings that differ now: device, backbone.weights, backbone.precision, train.*, eval.*,
    data.*, memory.*. trust: allow a method that is not part of promptcl (a dotted module name, which is imported).
    Raises Absent where there is no learner; UserError for a damaged one, a newer format, an unknown method or a bad
    setting.
    """
    pair = files.read_pair(folder / "learner.json", KIND)
    try:
        document = _Document.model_validate(pair.document)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"{folder} is a damaged {KIND.name}: learner.json has other fields than expected") from error
    if not _agrees(document):
        raise UserError(f"{folder} is a damaged {KIND.name}: its classes are not those of its tasks")
    for text in overrides:
        key = text.partition("=")[0].strip()
        if not key.startswith(_MAY_CHANGE):
            can = ", ".join(name + "*" if name.endswith(".") else name for name in _MAY_CHANGE)
            raise UserError(f"{text}: {key} of a learner cannot change, only {can}; leave it out")
    settings = document.config
    method = settings.get("method")
    if document.format == 1 and isinstance(method, dict) and method.get("name") == "joint":  # a setting since
        settings = {**settings, "joint": True, "method": {**method, "name": "linear"}}
    elif isinstance(method, dict) and "strength" in method and "penalty" not in method:  # it had one meaning
        settings = {**settings, "method": {"penalty": "each", "balance": False, **method}}
    config = _find_weights(folder, resolve(settings, overrides, trust))
    state = pair.tensors
    if document.format == 1:  # format 1 knew only one stage a task
        state = {re.sub("^optimizer[.]", "optimizer.0.", name): tensor for name, tensor in state.items()}
    return Saved(
        *(config, document.backbone, document.classes, document.tasks, document.notes, state),
        checksum=pair.checksum,
        format=document.format,
        changes=document.changes,
    )


def check_backbone(saved: Saved, now: dict[str, Any], weights: str) -> None:
    """Raise UserError if the backbone described by `now` is not the one that `saved` was learned with."""
    for key in ("sha256", "sha256_of", "image_size", "mean", "std"):
        if now[key] != saved.backbone.get(key):
            raise UserError(
                f"it was learned with backbone {saved.backbone.get('name')} {key} {saved.backbone.get(key)}, but "
                f"backbone.weights={weights} has {key} {now[key]}: give its own weights, backbone.weights=PATH"
            )


def fill(method: nn.Module, saved: Saved) -> None:
    """Load the tensors of `saved` into `method`, which grew by the same tasks. Raises UserError if they do not fit."""
    state = {name: tensor for name, tensor in saved.state.items() if not name.startswith(OWN)}
    here = {name: tensor.dtype for name, tensor in method.state_dict().items()}
    if saved.format == 1:  # format 1 called a sum by its plain name
        state = {f"{name}.value" if f"{name}.value" in here else name: tensor for name, tensor in state.items()}
    # Until 2026-11-30 symmetric matrices were saved whole, and methods knew no rows of images.
    for name, tensor in list(state.items()):
        if name.endswith("scatter_DD.value") and tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
            state[name] = packed(tensor)
    state = {**{name: t for name, t in method.state_dict().items() if not t.numel()}, **state}
    unfit = UserError("its tensors are not those of its method and classes; take a copy of it that is whole")
    if here != {name: tensor.dtype for name, tensor in state.items()}:
        raise unfit
    try:
        method.load_state_dict(state)  # a module may make room there for as many rows as were saved
    except RuntimeError as error:
        raise unfit from error
    if any(tensor.shape != state[name].shape for name, tensor in method.state_dict().items()):
        raise unfit


def checksum(folder: Path) -> str | None:
    """Checksum of the learner in `folder`, None where there is none. Raises UserError for a damaged one."""
    try:
        return str(files.read_json(folder / "learner.json", KIND)[0]["checksum"])
    except Absent:
        return None


def with_absolute_paths(config: Config) -> Config:
    """Return `config` with absolute paths of weights and data, as the next process may run in another folder."""
    if (root := config.data.root) is not None:
        data = config.data.model_copy(update={"root": str(disk.expanded(root).absolute())})
        config = config.model_copy(update={"data": data})
    weights = config.backbone.weights
    return config if weights in _NO_FILE else _with_weights(config, disk.expanded(weights).absolute())


def _with_weights(config: Config, path: Path) -> Config:
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"weights": str(path)})})


def _find_weights(folder: Path, config: Config) -> Config:
    """Return `config`, with the weight file inside the store where the recorded path has none (a copied store)."""
    weights = config.backbone.weights
    inside = folder / Path(weights).name
    if weights in _NO_FILE or disk.expanded(weights).is_file() or not inside.is_file():
        return config
    return _with_weights(config, inside)


def open_checkpoint(
    folder: Path, ancestors: Sequence[str], images_sha256: str, task: int, config: Config
) -> Checkpoint:
    """Begin or continue, in the store `folder`, the checkpoint of learning the images with this hash as task `task`.

    ancestors: as of `save`; the last one is the checksum of the learner before it learns them.
    Raises UserError where the learner was never saved (no `ancestors`).
    """
    if not ancestors:
        raise UserError(f"checkpoints in {folder} belong to a saved learner: save this one there before it learns")
    settings = with_absolute_paths(config).model_dump(mode="json")
    identity = {"base": ancestors[-1], "task": task, "images": images_sha256, "settings": settings}
    # By the clock only in a process alone: several would not agree on when it is time.
    seconds = config.train.checkpoint_seconds if processes.size() == 1 else None
    return Checkpoint(folder, identity, config.train.checkpoint_steps, seconds)
