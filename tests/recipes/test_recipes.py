"""Every recipe loads, says where it comes from, and the faithful ones hold the published settings."""

from __future__ import annotations

from pathlib import Path

import pytest

import promptcl
from promptcl.errors import UserError
from promptcl.recipes.load import load_config
from promptcl.recipes.registry import available

FOLDER = Path(promptcl.__file__).parent
RECIPES = sorted(available("recipes"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_and_its_header_is_complete(name: str) -> None:
    header = [
        line
        for line in (FOLDER / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    ]
    for field in (
        "Source:",
        "Command: promptcl ",
        "Expected:",
        "Time:",
        "Hardware:",
        "Differs from the paper in:",
    ):
        assert any(line.startswith(f"# {field}") for line in header), field
    config = load_config(name)
    assert config.data.name in available("datasets")
    assert config.method["name"] in available("methods")


@pytest.mark.parametrize("kind", ["recipes", "methods", "datasets"])
def test_everything_listed_has_a_description(kind: str) -> None:
    found = available(kind)
    assert found
    assert list(found) == sorted(found)
    assert all(len(line) > 20 for line in found.values()), found
    assert not any(name.startswith("_") for name in found)


def test_expected_names_exist() -> None:
    assert {"demo", "l2p", "l2p-jax", "l2p-pytorch", "l2p-vit-cifar100-b10-10-10"} <= set(available("recipes"))
    assert {"l2p", "ncm", "linear", "joint"} <= set(available("methods"))
    assert {"cifar100", "folder", "npz"} <= set(available("datasets"))
    with pytest.raises(UserError, match=r"did you mean methods\?"):
        available("metods")


def test_paper_recipe() -> None:
    config = load_config("l2p")
    assert {key: config.method[key] for key in ("pool_size", "top_k", "prompt_length", "pull", "vote")} == {
        "pool_size": 10,
        "top_k": 5,
        "prompt_length": 5,
        "pull": 0.5,
        "vote": "image",
    }
    assert (config.train.lr, config.train.lr_batch, config.train.batch_size, config.train.epochs) == (0.03, 256, 128, 5)
    assert (config.tasks, config.data.name, config.backbone.input_range) == (10, "cifar100", "weights")


def test_compat_recipes() -> None:
    jax = load_config("l2p-jax")
    assert [jax.method[key] for key in ("top_k", "prompt_length", "pull", "vote_size")] == [4, 10, 1.0, 16]
    assert jax.train.batch_size == 128
    port = load_config("l2p-pytorch")
    assert [port.method[key] for key in ("position", "prompt_init", "init_scale", "pull")] == [
        "class",
        "symmetric",
        1,
        0.1,
    ]
    lib = load_config("l2p-vit-cifar100-b10-10-10")
    assert (lib.train.batch_size, lib.train.lr, lib.train.lr_batch, lib.method["pull"]) == (16, 0.001875, None, 1.0)
    for config in (jax, port, lib):
        assert (config.method["vote"], config.backbone.input_range, config.train.mask) == ("batch", "unit", True)


def test_demo_needs_no_download() -> None:
    config = load_config("demo")
    assert (config.backbone.weights, config.data.name, config.tasks) == ("embedded", "mnist5k", 5)
