"""Recipes: configurations by name or from a YAML file, and what methods and data sets exist. Imports no torch."""

from promptcl.recipes.load import load_config, resolve
from promptcl.recipes.registry import available

__all__ = ["available", "load_config", "resolve"]
