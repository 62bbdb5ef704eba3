"""Where the images of a data set are that torchvision can download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptcl.config import DataConfig
from promptcl.errors import UserError


def downloaded(config: DataConfig, folder: str, download: Callable[[str], Any]) -> DataConfig:
    """The config with a root: the given one, or `folder` in ~/.cache/promptcl, where `download` puts it.

    Raises UserError where the download fails.
    """
    if config.root is not None:
        return config
    cache = Path("~/.cache/promptcl").expanduser()
    try:
        download(str(cache))
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{config.name} is not in {cache} and could not be downloaded ({error}); get it from elsewhere, and write "
            "data.root=PATH"
        ) from error
    return config.model_copy(update={"root": str(cache / folder)})
