"""Refuse settings that were given by hand and that nothing reads. Imports no torch.

Given by hand is what stands in key=value, and in a YAML file that is no recipe of promptcl and not the config.yaml of a
run, which states every setting. Who defines settings says which are not read: `Section.unread` of those beside other
ones, `Method.reads` of those outside of `method`, a data set by what it reads of its DataConfig while it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import PrivateAttr

from promptcl.config.messages import show
from promptcl.config.schema import WITHOUT_BOUNDARIES, Config, DataConfig, Section, Unread
from promptcl.errors import UserError

_DECIDERS = (
    *("method", "scenario", "joint", "online", "data.name", "data.augment", "data.imbalance", "train.mask"),
    *("gaussian.", "blurry.", "memory."),
)
_VIEWS = (
    "data.augment",
    "data.crop_scale",
    "data.crop_ratio",
    "data.hflip",
    "data.jitter",
)  # of images that are trained on
_STREAM = (
    *("tasks", "joint", "online", "gaussian.", "blurry.", "data.name", "data.root", "data.order", "data.test_set"),
    *("data.class_order", "data.imbalance"),
    *("data.train_per_class", "data.test_per_class", "data.validation_per_class"),
)
_RUN = ("backbone", "data", "train", "eval", "memory", "method")
READING = ("data.cache_mb", "data.disk_mb", "data.disk_root", "data.workers")
"""How images are read, which changes no result."""
_ANSWER = ("device", "backbone.", "eval.", "data.eval_crop", *READING)


def check_read(config: Config, options: Section, reads: Sequence[str], given: Iterable[str]) -> None:
    """Raise UserError for a dotted key of `given` that nothing reads with the values that `config` has.

    options: the settings of the method; reads: what `Method.reads` gave. A key is passed over where its value asks for
    nothing: null, false, 0 or none.
    """
    unread = {**config.unread(), **_of_method(config, reads)}
    for name, (because, instead) in options.unread().items():
        unread[f"method.{name}"] = Unread(f"method.{because}", instead and f"method.{instead}")
    values = {**config.model_dump(), "method": options.model_dump()}
    for key in given:
        why = unread.get(key) or unread.get(f"{key.partition('.')[0]}.")
        value = _value(values, key)
        if why is not None and value not in (None, False, 0, "none"):
            instead = f", or write {why.instead}" if why.instead else ""
            raise UserError(f"{key}={show(value)} is not read with {why.because}; leave it out{instead}")


def decides(key: str) -> bool:
    """Whether a setting may be what decides that others are read."""
    return key.startswith(_DECIDERS)


def _of_method(config: Config, reads: Sequence[str]) -> dict[str, Unread]:
    """What the method does not read of training and of replaying."""
    found: dict[str, Unread] = {}
    name = f"method.name={config.method['name']}"
    if "train." not in reads:
        why = Unread(f"{name}, which trains nothing with its options", "a method that trains, such as method.name=l2p")
        keys = {f"train.{key}" for key in type(config.train).model_fields if key != "holdout"}  # the learner's own
        if config.scenario in WITHOUT_BOUNDARIES:
            keys.remove("train.batch_size")  # the size of a micro-task
        if config.measures_online:
            keys.remove("train.epochs")  # which has to be 1
        found |= dict.fromkeys((*sorted(keys), *_VIEWS), why)
    for key in reads:
        if key.startswith("!"):
            found[key[1:]] = Unread(name)
    if "memory." not in reads:
        found["memory."] = Unread(f"{name}, which replays no images", "a method that does, such as method.name=l2p")
    return found


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def keys_in(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of the values in nested mappings."""
    found = []
    for key, value in data.items():
        found += keys_in(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return found


def is_of_a_run(data: Mapping[str, Any]) -> bool:
    """Whether the content of a YAML file states every section, as the config.yaml of a run does."""
    return all(isinstance(data.get(name), Mapping) for name in _RUN)


def check_settings_of_learning(settings: Iterable[str]) -> None:
    """Raise UserError for a key=value that only streams of tasks have: who learns a folder says what is in it."""
    for text in settings:
        key = text.partition("=")[0].strip()
        if key.startswith(_STREAM):
            raise UserError(f"{text} is not read where a folder is learned, all its images are; leave it out")


def check_settings_of_answers(settings: Iterable[str]) -> None:
    """Raise UserError for a key=value that has no effect on what a learner answers."""
    for text in settings:
        key = text.partition("=")[0].strip()
        if key.startswith(("train.", "memory.", *_STREAM, "data.")) and not key.startswith(_ANSWER):
            raise UserError(
                f"{text} is not read where nothing is learned; leave it out (device, backbone.*, eval.*, "
                "data.eval_crop, data.cache_mb, data.workers and data.disk_mb are)"
            )


class Watched(DataConfig):
    """A DataConfig that notes whether a data set reads where its images are, and in which order it is to give them."""

    _read: set[str] = PrivateAttr(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        """The setting, noted."""
        if name in ("root", "order"):
            self._read.add(name)
        return super().__getattribute__(name)

    @classmethod
    def of(cls, config: DataConfig) -> Watched:
        """The same settings, none of them read so far."""
        return cls.model_construct(**dict(config))

    def check(self) -> None:
        """Raise UserError for a root or an order that was given, and that the data set has not read."""
        read = set(self._read)
        given = {"root": self.root, "order": self.order}
        for key in sorted({key for key, value in given.items() if value is not None} - read):
            value = show(given[key])
            kind = "domains" if key == "order" else "npz" if value.endswith(".npz") else "folder"
            raise UserError(
                f"data.{key}={value} is not read by data.name={self.name}; leave it out, or write data.name={kind}"
            )
