"""A setting that was given by hand and that nothing reads is refused, whoever defines it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from promptcl.config.schema import Config, DataConfig, dump_config
from promptcl.data.splits import load_domains, load_split
from promptcl.errors import UserError
from promptcl.recipes.load import load_config


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        ("demo", ["gaussian.sigma=3"], "gaussian.sigma=3.0 is not read with scenario=class; leave it out, or write s"),
        ("domain-digits", ["tasks=3"], "tasks=3 is not read with scenario=domain; leave it out, or write scenario=cl"),
        ("gaussian-cifar100", ["tasks=3"], "tasks=3 is not read with scenario=gaussian"),
        ("siblurry-cifar100", ["gaussian.sigma=3"], "gaussian.sigma=3.0 is not read with scenario=blurry"),
        ("demo", ["blurry.blur=0.2"], "blurry.blur=0.2 is not read with scenario=class; leave it out, or write"),
        ("siblurry-cifar100", ["blurry.disjoint=1", "blurry.blur=0.2"], "not read with blurry.disjoint=1.0"),
        ("siblurry-cifar100", ["data.class_order=shuffled"], "not read with scenario=blurry, which draws the order"),
        ("siblurry-cifar100", ["joint=true", "online=true"], "online=true is not read with joint=true"),
        ("demo", ["online=true"], "online=true is not read with scenario=class; leave it out, or write scenario=blurr"),
        ("demo", ["data.imbalance_order=ordered"], "data.imbalance_order=ordered is not read with data.imbalance=null"),
        ("demo", ["data.test_set=common"], "data.test_set=common is not read with scenario=class"),
        ("demo", ["data.crop_scale=[0.1,1]"], "not read with data.augment=none; leave it out, or write data.augment=c"),
        ("l2p", ["train.mask=false", "train.mask_classes=batch"], "not read with train.mask=false"),
        ("l2p", ["memory.batch_size=4"], "not read with memory.per_class=0; leave it out, or write memory.per_class="),
        ("demo", ["method.name=ncm", "train.lr=1"], "train.lr=1.0 is not read with method.name=ncm, which trains noth"),
        ("demo", ["method.name=ranpac", "train.lr=1"], "train.lr=1.0 is not read with method.name=ranpac"),
        ("demo", ["memory.per_class=9"], "memory.per_class=9 is not read with method.name=l2p_ridge, which replays no"),
        ("l2p", ["method.vote_size=4"], "method.vote_size=4 is not read with method.vote=image; leave it out, or writ"),
        ("oneprompt", ["method.outlier_epochs=4"], "not read with method.outliers=none"),
        ("oneprompt", ["method.temperature=0.5"], "not read with method.head=linear; leave it out, or write method.h"),
        ("singleprompt", ["method.head_init=zero"], "not read with method.head=cosine"),
        ("fsa", ["method.classifier=ridge", "method.align_lr=0.1"], "not read with method.classifier=ridge"),
        ("fsa", ["method.classifier=ridge", "method.covariance=shared"], "not read with method.classifier=ridge"),
        (
            "fsa",
            ["method.adapt=none", "train.schedule=constant"],
            "train.schedule=constant is not read with method.name=fsa",
        ),
        ("fsa", ["method.adapt=none", "train.epochs=2"], "train.epochs=2 is not read with method.name=fsa"),
        (
            "coda",
            ["method.align_lr=0.1"],
            "not read with method.align_epochs=0; leave it out, or write method.align_epochs=5",
        ),
        ("hide", ["method.align_epochs=0", "method.align_samples=9"], "not read with method.align_epochs=0"),
        ("slca-lora", ["method.align_epochs=0", "method.temperature=1"], "not read with method.align_epochs=0"),
        ("l2p", ["method.name=ranpac", "method.size=4"], "method.size=4 is not read with method.adapt=none"),
    ],
)
def test_idle_settings_are_refused(recipe: str, settings: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(recipe, settings)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("domain-digits", ["tasks=1"]),
        ("demo", ["method.name=ncm", "train.holdout=0.2", "memory.per_class=0", "data.augment=none", "data.root=null"]),
        ("gaussian-cifar100", ["method.name=ncm", "train.batch_size=8"]),
        ("siblurry-cifar100", ["method.name=ncm", "train.epochs=1", "tasks=4"]),
        ("siblurry-cifar100", ["joint=true", "data.imbalance=9", "data.imbalance_order=ordered"]),
        ("siblurry-cifar100", ["scenario=gaussian", "gaussian.sigma=3", "online=true"]),
        ("ranpac", ["method.adapt=adapter", "method.size=4", "train.lr=1"]),
        ("demo", ["method.name=l2p", "memory.per_class=9", "memory.batch_size=4"]),
        ("l2p", ["data.validation_per_class=2", "data.test_per_class=5"]),
        ("fsa", ["method.classifier=ridge", "method.align_epochs=0"]),
        ("fsa", ["method.adapt=none", "method.classifier=both", "method.means=false", "method.align_lr=0.1"]),
        ("slca-lora", ["method.align_epochs=0"]),
        ("oneprompt", ["method.head=cosine", "method.temperature=0.5", "method.head_init=uniform"]),
    ],
)
def test_settings_that_are_read_or_ask_for_nothing_are_not(recipe: str, settings: list[str]) -> None:
    load_config(recipe, settings)


def test_a_file_of_ones_own_is_by_hand_and_one_of_a_run_is_not(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("gaussian: {sigma: 3}\nmethod: l2p\n")
    for settings in ([], ["seed=7"]):
        with pytest.raises(UserError, match=r"mine.yaml: gaussian.sigma=3.0 is not read with scenario=class"):
            load_config(str(mine), settings)
    mine.write_text("train: {epochs: 3}\nmethod: l2p\n")
    assert load_config(str(mine), ["method.name=ncm"]).train.epochs == 3  # read until another method was named
    mine.write_text(dump_config(Config.model_validate({"gaussian": {"sigma": 3}})))
    load_config(str(mine))


ONE = """
import numpy as np
from promptcl import ImageSet
def load(config):
    images = ImageSet.from_arrays(np.zeros((4, 4, 4), np.uint8), list("abab"))
    return images, images
"""


def test_a_data_set_says_what_it_reads_by_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"data.root=mine is not read by data.name=mnist5k; .* write data.name=folder"):
        load_split(DataConfig(name="mnist5k", root="mine"))
    with pytest.raises(UserError, match=r"write data.name=npz"):
        load_split(DataConfig(name="mnist5k", root="mine.npz"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unheard_of.py").write_text(ONE)
    assert len(load_split(DataConfig(name="unheard_of")).train) == 4
    with pytest.raises(UserError, match=r"data.root=mine is not read by data.name=unheard_of"):
        load_split(DataConfig(name="unheard_of", root="mine"))
    two = np.zeros((2, 4, 4), np.uint8)
    np.savez("a.npz", train_images=two, test_images=two, train_labels=[0, 1], test_labels=[0, 1])
    (domain,) = load_domains(DataConfig(name="npz", root="a.npz"))
    assert len(domain.train) == 2
    # Naming another data set drops where the images of the first one are.
    (tmp_path / "mine.yaml").write_text("data: {name: npz, root: a.npz}\n")
    assert load_config("mine.yaml", ["data.name=mnist5k"]).data.root is None
    assert load_config("mine.yaml", ["data.name=npz"]).data.root == "a.npz"


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("init_cls", None),
        ("method.init_cls", None),
        ("increment", None),
        ("train.momentum", None),
        ("train.num_epochs", "train.epochs"),
        ("epochs", "train.epochs"),
        ("method.promt_length", "method.prompt_length"),
        ("method.lenght", None),
        ("bacth_size", "train.batch_size"),
        ("backbone.nmae", "backbone.name"),
        ("data.nmae", "data.name"),
    ],
)
def test_suggestions_are_near(key: str, near: str | None) -> None:
    with pytest.raises(UserError) as caught:
        load_config("l2p", [f"{key}=1"])
    if near is None:
        assert "did you mean" not in str(caught.value)
        assert "expected one of" in str(caught.value)
    else:
        assert str(caught.value) == f"unknown key {key}: did you mean {near}?"
