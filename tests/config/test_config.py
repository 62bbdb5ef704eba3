"""Settings: parsing, overrides, one-sentence errors, and the YAML that repeats a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from promptcl.config.schema import Config, DataConfig, Section, TrainConfig, dump_config
from promptcl.errors import UserError
from promptcl.recipes.load import load_config
from promptcl.recipes.registry import available


def sentence(recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(recipe, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_contract_keys_can_be_overridden() -> None:
    config = load_config(
        "l2p",
        [
            "backbone.name=test_vit",
            "backbone.weights=random",
            "backbone.image_size=160",
            "data.name=folder",
            "data.root=some/where",
            "data.train_per_class=100",
            "data.test_per_class=20",
            "tasks=4",
            "train.epochs=2",
            "train.batch_size=16",
            "train.lr=1e-3",
            "method.name=linear",
            "seed=7",
            "device=cpu",
        ],
    )
    assert (config.backbone.name, config.backbone.weights, config.backbone.image_size) == ("test_vit", "random", 160)
    assert (config.data.name, config.data.root) == ("folder", "some/where")
    assert (config.data.train_per_class, config.data.test_per_class) == (100, 20)
    assert (config.tasks, config.seed, config.device, config.method["name"]) == (4, 7, "cpu", "linear")
    assert (config.train.epochs, config.train.batch_size, config.train.lr) == (2, 16, 0.001)


@pytest.mark.parametrize("text", ["123", "on", "1e3", "null", "[a]"])
def test_text_stays_text(text: str) -> None:
    assert load_config("l2p", [f"backbone.name={text}"]).backbone.name == text


def test_a_value_may_hold_an_equals_sign() -> None:
    assert load_config("l2p", ["data.root=a=b"]).data.root == "a=b"


def test_null_booleans_pairs_and_free_keys() -> None:
    config = load_config(
        "l2p",
        [
            "train.clip_norm=null",
            "data.hflip=no",
            "data.crop_scale=[0.5, 1]",
            "backbone.kwargs.depth=6",
            "data.root=null",
        ],
    )
    assert config.train.clip_norm is None
    assert config.data.root is None
    assert config.data.hflip is False
    assert config.data.crop_scale == (0.5, 1.0)
    assert config.backbone.kwargs == {"depth": 6}


def test_method_options_are_checked_typed_and_filled_in() -> None:
    method = load_config("l2p", ["method.top_k=4", "method.vote=batch"]).method
    assert (method["top_k"], method["vote"], method["vote_size"]) == (4, "batch", 16)


def test_naming_another_method_drops_the_options_of_the_old_one() -> None:
    assert load_config("l2p", ["method.name=ncm"]).method == {"name": "ncm", "features": "class", "rows": 0}
    assert load_config("l2p", ["method=linear"]).method["name"] == "linear"
    assert load_config("l2p-jax", ["method.name=l2p"]).method["prompt_length"] == 10


def test_naming_another_backbone_drops_the_kwargs_of_the_old_one() -> None:
    assert load_config("demo").backbone.kwargs
    assert load_config("demo", ["backbone.name=test_vit"]).backbone.kwargs == {}


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.learning_rate=1", "train.lr"),
        ("train.epoch=1", "train.epochs"),
        ("epochs=1", "train.epochs"),
        ("tain.lr=1", "train.lr"),
        ("train.lr.x=1", "train.lr"),
        ("method.topk=1", "method.top_k"),
        ("pool_size=1", "method.pool_size"),
        ("dataset=folder", "data.name"),
        ("model=vit", "backbone.name"),
        ("task=3", "tasks"),
        ("backbone.weight=hub", "backbone.weights"),
    ],
)
def test_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    key = override.partition("=")[0]
    assert sentence("l2p", override) == f"unknown key {key}: did you mean {nearest}?"


def test_unknown_key_with_nothing_near_lists_what_there_is() -> None:
    assert "expected one of data.name, data.root" in sentence("l2p", "data.zzzz=1")
    assert "expected one of scenario, tasks, joint, online, seed, device, b" in sentence("l2p", "xyzzy.plugh=1")


def test_lists_of_names(tmp_path: Path) -> None:
    assert load_config("l2p", ["data.order=[mnist, svhn]"]).data.order == ("mnist", "svhn")
    for names in ("[2021, 2020]", "[on, off, 007, 1e3, 2020-01-01, null]"):
        config = load_config("l2p", [f"data.order={names}"])
        assert config.data.order == tuple(names[1:-1].split(", "))
        (tmp_path / "order.yaml").write_text(f"data:\n  order: {names}\n  train_per_class: 3\n")
        assert load_config(str(tmp_path / "order.yaml")).data == config.data.model_copy(update={"train_per_class": 3})
        (tmp_path / "dumped.yaml").write_text(dump_config(config))
        assert load_config(str(tmp_path / "dumped.yaml")) == config
    assert "did you mean data.order?" in sentence("l2p", "data.domains=[mnist]")
    assert "expected a list such as [a, b] or null" in sentence("l2p", "data.order=mnist")
    assert "train.schedule=cosine needs task ends" in sentence("gaussian-cifar100", "train.schedule=cosine")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=0", "train.epochs=0: expected a whole number greater than 0; write e.g. train.epochs=5"),
        ("train.epochs=true", "train.epochs=true: expected a whole number greater than 0; write e.g. train.epochs=5"),
        ("train.epochs=2.5", "train.epochs=2.5: expected a whole number greater than 0; write e.g. train.epochs=5"),
        ("train.lr=nan", "train.lr=nan: expected a number greater than 0; write e.g. train.lr=0.03"),
        ("train.lr=fast", "train.lr=fast: expected a number greater than 0; write e.g. train.lr=0.03"),
        ("tasks=2.5", "tasks=2.5: expected a whole number or a list such as [50, 10, 10]; write e.g. tasks=10"),
        ("tasks=true", "tasks=true: expected a whole number or a list such as [50, 10, 10]; write e.g. tasks=10"),
        ("tasks=0", "tasks=0: expected a whole number greater than 0, or the number of classes of each task"),
        ("tasks=[5,0]", "tasks=[5, 0]: expected a whole number greater than 0, or the number of classes of each task"),
        ("seed=-1", "seed=-1: expected a whole number at least 0; write e.g. seed=42"),
        ("train.mask=7", "train.mask=7: expected true or false; write e.g. train.mask=true"),
        ("train.optimizer=adan", "train.optimizer=adan: expected one of adam, adamw, sgd: did you mean adam?"),
        ("method.vote=bach", "method.vote=bach: expected one of image, batch: did you mean batch?"),
        ("method.top_k=11", "method: top_k=11 is more than pool_size=10"),
        ("train.clip_norm=0", "expected a number greater than 0 or null"),
        ("backbone.image_size=0", "backbone.image_size=0: expected a whole number greater than 0 or null"),
        ("data.crop_scale=[1, 0.2]", "data.crop_scale=[1, 0.2]: expected 0 < low <= high <= 1"),
        ("data.crop_scale=3", "data.crop_scale=3: expected 2 numbers"),
        ("train=5", "train=5: train is a section; write e.g. train.epochs=5"),
        ("data.name=cifar", "did you mean cifar100?"),
        ("method.name=l2q", "did you mean l2p?"),
        ("seed", "seed: expected key=value, such as train.epochs=5"),
        ("=5", "expected key=value"),
    ],
)
def test_bad_value_says_what_was_expected(override: str, expected: str) -> None:
    assert expected in sentence("l2p", override)


def test_unknown_recipe_names_the_nearest() -> None:
    assert "did you mean l2p-jax?" in sentence("l2p-jx")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tasks: [1", "not valid YAML at line 1"),
        ("- a", "expected a YAML mapping"),
        ("just words", "expected a YAML mapping"),
        ("train: {learning_rate: 3}", "unknown key train.learning_rate: did you mean train.lr?"),
        ("train: 5", "train is a section"),
        ("tasks: true", "tasks=true: expected a whole number or a list"),
        ("method: [l2p]", "expected the name of a method"),
        ("method: {name: l2p, topk: 3}", "unknown key method.topk"),
        ("1: 2", "unknown key 1"),
        ("tasks: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert expected in sentence(str(path))


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in sentence(str(tmp_path / "binary.yaml"))
    assert "No such file" in sentence(str(tmp_path / "absent.yaml"))
    assert "cannot read this recipe" in sentence(str(tmp_path))


def test_an_override_cannot_hide_a_broken_section(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: 5\n")
    assert "train is a section" in sentence(str(path), "train.lr=1")


def test_an_empty_section_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train:\nmethod: linear\n")
    config = load_config(str(path), ["train.epochs=2"])
    assert config.train == TrainConfig(epochs=2)
    assert config.method["name"] == "linear"


@pytest.mark.parametrize("recipe", sorted(available("recipes")))
def test_dumped_config_repeats_the_run(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe, ["backbone.name=123", "data.root=on", "data.eval_crop=1e-1"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(path)) == config


@pytest.mark.slow
@given(
    lr=st.floats(min_value=1e-30, max_value=1e30),
    seed=st.integers(0, 2**63),
    root=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20),
)
def test_any_config_survives_its_yaml(lr: float, seed: int, root: str | None) -> None:
    import yaml

    config = Config(seed=seed, train=TrainConfig(lr=lr), data=DataConfig(root=root))
    assert Config.model_validate(yaml.safe_load(dump_config(config))) == config


def test_sections_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        Config().tasks = 3
    with pytest.raises(ValidationError):
        Config.model_validate({"nonsense": 1})
    assert issubclass(Config, Section)
