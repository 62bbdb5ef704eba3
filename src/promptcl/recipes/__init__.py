"""A name or a YAML file -> Config, and what recipes, methods and data sets exist. Imports no torch."""

from promptcl.recipes.load import load_config, resolve
from promptcl.recipes.registry import available

__all__ = ["available", "load_config", "resolve"]
