"""Every setting: the models of the sections, key=value, and sentences about a bad one. Imports no torch."""

from promptcl.config.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    EvalConfig,
    MemoryConfig,
    TrainConfig,
    dump_config,
)
from promptcl.config.section import Section, Unread
from promptcl.config.streams import BlurryConfig, GaussianConfig

__all__ = [
    "BackboneConfig",
    "BlurryConfig",
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
