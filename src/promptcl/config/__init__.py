"""Every setting: the models of the sections, key=value, and sentences about a bad one. Imports no torch."""

from promptcl.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    EvalConfig,
    GaussianConfig,
    MemoryConfig,
    Section,
    TrainConfig,
    Unread,
    dump_config,
)

__all__ = [
    "BackboneConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "GaussianConfig",
    "MemoryConfig",
    "Section",
    "TrainConfig",
    "Unread",
    "dump_config",
]
