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
    assert {"demo", "l2p", "l2p-jax", "l2p-pytorch", "l2p-vit-cifar100-b10-10-10", "dualprompt", "oneprompt"} <= set(
        available("recipes")
    )
    assert {"grow", "grow-demo", "grow-adapted", "grow-adapted-demo"} <= set(available("recipes"))
    assert {"l2p", "ncm", "linear", "dualprompt", "oneprompt", "ridge", "ranpac", "l2p_ridge"} <= set(
        available("methods")
    )
    assert {"coda", "apt", "vq", "l2p_prefix", "osprompt", "sprompts"} <= set(available("methods"))
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


@pytest.mark.parametrize(
    ("name", "train", "method"),
    [
        ("coda", (20, 128, 0.001, "adam", "quarter_cosine"), {"components": 10, "length": 4, "ortho": 0}),
        ("osprompt", (20, 128, 0.001, "adam", "quarter_cosine"), {"components": 10, "length": 4, "qr": 0}),
        ("l2p-prefix", (20, 128, 0.001, "adam", "quarter_cosine"), {"pool_size": 30, "top_k": 5, "length": 10}),
        ("vq", (20, 128, 0.0025, "adamw", "cosine"), {"pool_size": 10, "prompt_lr": 0.0125, "commitment": 0.4}),
        ("apt", (30, 64, 0.004, "adam", "quarter_cosine"), {"average": 0.7}),
        ("sprompts", (20, 128, 0.01, "sgd", "cosine"), {"length": 10, "centres": 5, "distance": "l1"}),
        ("singleprompt", (3, 32, 0.005, "adam", "constant"), {"head": "cosine", "position": "class"}),
    ],
)
def test_recipes_of_prompt_methods_hold_the_published_settings(
    name: str, train: tuple[object, ...], method: dict[str, object]
) -> None:
    config = load_config(name)
    t = config.train
    assert (t.epochs, t.batch_size, t.lr, t.optimizer, t.schedule) == train
    assert config.method.items() >= method.items()
    assert (t.clip_norm, t.nesterov) == (None, name != "sprompts")
    wanted = "imagenet" if name == "sprompts" else "unit"
    assert (config.backbone.input_range, config.backbone.name.split(".")[0]) == (wanted, "vit_base_patch16_224")


def test_demo_needs_no_download() -> None:
    config = load_config("demo")
    assert (config.backbone.weights, config.data.name, config.tasks) == ("embedded", "mnist5k", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "not valid YAML at line 2: an alias"),
        ("[" * 700, "not valid YAML"),
        ("seed: 2001-99-99", "not valid YAML"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("# " + "x" * 200_000, "at most 100000 are read"),
    ],
)
def test_yaml_that_would_explode(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / "a.yaml"))


def test_code_outside_the_package_is_refused_unless_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("")
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("from promptcl.methods.ncm import *\nfrom promptcl.methods.ncm import Model\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"method\.name=outside\.mine is code outside promptcl.*--trust"):
        load_config("demo", ["method.name=outside.mine"])
    assert load_config("demo", ["method.name=outside.mine"], trust=True).method["name"] == "outside.mine"
    for name in ("os", "../os", "_base", "__init__"):
        with pytest.raises(UserError, match=r"method\.name="):
            load_config("demo", [f"method.name={name}"])
    with pytest.raises(UserError, match=r"outside\.none"):
        load_config("demo", ["method.name=outside.none"], trust=True)


def test_the_default_of_learn_trains_nothing_and_its_other_form_adapts() -> None:
    """The recipes of `promptcl learn`: for photos, and the same on the small ViT inside the package."""
    for end in ("", "-demo"):
        plain, adapted = load_config(f"grow{end}"), load_config(f"grow-adapted{end}")
        default = {"name": "ridge", "features": "deep", "cosine": 0.5, "balance": True, "rows": 20000}
        assert plain.method.items() >= default.items()
        assert plain.train.holdout == 0  # calibrated on every image, left out in turn
        assert (adapted.method["name"], adapted.method["adapt"], adapted.method["width"]) == ("ranpac", "adapter", 0)
        assert adapted.train.holdout > 0
        assert adapted.backbone == plain.backbone
        for key in ("features", "cosine", "balance"):
            assert adapted.method[key] == plain.method[key]
