"""tmp"""

import importlib
from types import ModuleType


def load_module(kind: str, package: str, name: str) -> ModuleType:
    return importlib.import_module(name if "." in name else f"{package}.{name}")
