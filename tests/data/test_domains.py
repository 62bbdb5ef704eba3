"""Data in parts: 5-datasets, domains, CORe50, and what is wrong with them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import grey

from promptcl.config.schema import Config, DataConfig
from promptcl.data.scenario import make_stream
from promptcl.data.splits import Domain, load_domains
from promptcl.data.stream import Stream
from promptcl.errors import UserError
from promptcl.recipes import load_config


def write(root: Path, names: list[str]) -> None:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(grey(value))


def domains(root: Path, **settings: Any) -> list[Domain]:
    return load_domains(DataConfig(name="domains", root=str(root), **settings))


def stream_of(parts: list[Domain], **settings: Any) -> Stream:
    return make_stream(parts, Config.model_validate({"scenario": "domain", **settings}))


def sizes(parts: list[Domain]) -> dict[str, tuple[int, int]]:
    return {part.name: (len(part.train), len(part.test)) for part in parts}


def test_five_datasets(assets: Path) -> None:
    root = str(assets / "data" / "five_datasets")
    parts = load_domains(DataConfig(name="five_datasets", root=root, train_per_class=3, test_per_class=2))
    assert [part.name for part in parts] == ["cifar10", "mnist", "svhn", "notmnist", "fashion_mnist"]
    assert all(size == (30, 20) for size in sizes(parts).values())
    assert parts[1].train.classes[3] == "mnist 3"
    assert parts[2].train.image(0).shape == (3, 32, 32)
    grey = parts[1].train.image(0)
    assert grey.shape == (3, 28, 28)
    assert grey[0].equal(grey[2])
    stream = make_stream(parts, Config(tasks=5))
    assert [task.name for task in stream.tasks] == [part.name for part in parts]
    assert len(stream.everything.classes) == 50
    assert not stream.one_test
    for sizes_or_number in (1, (10,) * 5):
        assert make_stream(parts, Config(tasks=sizes_or_number)).everything.classes == stream.everything.classes
    for number in (10, (20, 30)):
        with pytest.raises(UserError, match=r"tasks=.* is not read where the data are 5 data sets .*write tasks=1"):
            make_stream(parts, Config(tasks=number))
    by_hand = ["data.name=five_datasets", f"data.root={root}"]
    assert len(make_stream(parts, load_config("l2p", by_hand)).tasks) == 5  # whose `tasks: 10` is not by hand
    with pytest.raises(UserError, match="tasks=7 is not read"):
        make_stream(parts, load_config("l2p", [*by_hand, "tasks=7"]))
    chosen = load_domains(DataConfig(name="five_datasets", root=root, order=("svhn", "mnist"), train_per_class=1))
    assert [part.name for part in chosen] == ["svhn", "mnist"]
    with pytest.raises(UserError, match=r"data.order has 'kmnist', which is not one of the data sets: cifar10, mnist"):
        load_domains(DataConfig(name="five_datasets", root=root, order=("kmnist",)))


def test_digits_as_domains(assets: Path) -> None:
    root = str(assets / "data" / "five_datasets")
    settings = {"name": "domains", "root": root, "train_per_class": 2, "test_per_class": 3}
    for order in (("mnist", "svhn"), ("svhn", "mnist")):
        stream = stream_of(load_domains(DataConfig.model_validate({**settings, "order": order})))
        assert [task.name for task in stream.tasks] == list(order)
        assert [task.classes for task in stream.tasks] == [tuple("0123456789")] * 2
        assert [len(task.test) for task in stream.tasks] == [30, 30]
    with pytest.raises(UserError, match="domains 'mnist' and 'cifar10' have different classes"):
        load_domains(DataConfig.model_validate({**settings, "order": ["mnist", "cifar10"]}))


def test_a_folder_of_domains_with_any_names(tmp_path: Path) -> None:
    places = ["rainy day", "snö", "日光"]
    write(
        tmp_path, [f"{place}/big {animal}/{i}.png" for place in places for animal in ("cat", "Äffin") for i in range(5)]
    )
    (tmp_path / "notes.txt").write_text("x")
    parts = domains(tmp_path)
    assert sizes(parts) == dict.fromkeys(places, (8, 2))
    assert parts[0].train.classes == ("big cat", "big Äffin")
    assert parts[1].test.name(0).endswith("snö/big cat/4.png")
    stream = stream_of(domains(tmp_path, order=("日光", "rainy day")), data={"test_set": "common"})
    assert [task.name for task in stream.tasks] == ["日光", "rainy day"]
    assert stream.one_test
    assert stream.tasks[0].test is stream.tasks[1].test
    assert len(stream.tasks[0].test) == 4
    assert len(stream.everything.train) == 16
    once = stream_of(domains(tmp_path), tasks=1)
    assert [len(task.train) for task in once.tasks] == [24]


def test_split_tsv_decides(tmp_path: Path) -> None:
    write(tmp_path, [f"photos/{i}.png" for i in range(9)])
    # The table has the composed letter, the domain in the last row the decomposed one: they are the same name.
    rows = ["path\tsplit\tdomain\tclass"]
    rows += [f"photos/{i}.png\ttrain\tcafé {i % 2}\tk{i // 2 % 2}" for i in range(8)]
    rows += [f"photos/{i}.png\ttest\tcafé {i % 2}\tk{i // 2 % 2}" for i in range(4)]
    rows += ["./photos/8.png\ttest\tcafe\u0301 1\tk0", ""]
    (tmp_path / "split.tsv").write_text("\n".join(rows), encoding="utf-8")
    parts = domains(tmp_path)
    assert sizes(parts) == {"café 0": (4, 2), "café 1": (4, 3)}
    table = tmp_path / "split.tsv"
    for bad, message in {
        "path,split\n": "expected path split domain class with tabs",
        rows[0] + "\nphotos/0.png\tvalidation\ta\tb\n": r"line 2 of .* expected path split domain class",
        rows[0] + "\nphotos/77.png\ttrain\ta\tb\n": "line 2 of .* names 'photos/77.png', which does not exist",
    }.items():
        table.write_text(bad, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            domains(tmp_path)


def test_a_domain_that_is_only_tested_needs_a_common_test_set(tmp_path: Path) -> None:
    write(tmp_path, [f"{i}.png" for i in range(6)])
    rows = [f"{i}.png\t{'test' if i > 3 else 'train'}\t{'abc'[i // 2]}\tk{i % 2}" for i in range(6)]
    (tmp_path / "split.tsv").write_text("\n".join(["path\tsplit\tdomain\tclass", *rows]))
    parts = domains(tmp_path, test_set="common")
    stream = stream_of(parts, data={"test_set": "common"})
    assert [(task.name, len(task.train), len(task.test)) for task in stream.tasks] == [("a", 2, 2), ("b", 2, 2)]
    with pytest.raises(UserError, match="'a': there are no test images"):
        domains(tmp_path)


def test_what_is_wrong_with_domains_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs data.root"):
        load_domains(DataConfig(name="domains"))
    write(tmp_path, [f"{place}/{kind}/{i}.png" for place in ("a", "b b") for kind in ("x", "y") for i in range(5)])
    with pytest.raises(UserError, match="at least two domains to learn but the data has 1"):
        stream_of(domains(tmp_path, order=("a",)))
    with pytest.raises(UserError, match="'c', which is not one of the domains: a, b b"):
        domains(tmp_path, order=("a", "c"))
    with pytest.raises(UserError, match="each once"):
        domains(tmp_path, order=("a", "a"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"domain 'empty' in .* has no images"):
        domains(tmp_path)
    (tmp_path / "empty" / "x").mkdir()
    with pytest.raises(UserError, match=r"domain 'empty' in .* has no images"):
        domains(tmp_path)
    write(tmp_path, [f"empty/{kind}/{i}.png" for kind in ("x", "z") for i in range(5)])
    with pytest.raises(UserError, match="'a': class 'z' has no training images"):
        domains(tmp_path)


def test_classes_that_differ_between_parts_are_no_domains(assets: Path) -> None:
    root = str(assets / "data" / "five_datasets")
    parts = load_domains(DataConfig(name="five_datasets", root=root, train_per_class=1, test_per_class=1))
    with pytest.raises(UserError, match=r"needs the same classes in every domain but 'cifar10 airplane'"):
        stream_of(parts)
    with pytest.raises(UserError, match=r"data.order needs several domains or data sets but data.name=npz is one"):
        load_domains(DataConfig(name="npz", root=f"{root}/mnist.npz", order=("mnist",)))


@pytest.mark.parametrize("archive", [False, True])
def test_core50_layout(tmp_path: Path, archive: bool) -> None:
    names = [
        f"core50_128x128/s{s}/o{o}/C_{s:02}_{o:02}_{i:03}.png"
        for s in range(1, 12)
        for o in (1, 2, 10)
        for i in range(4)
    ]
    root = tmp_path / "core50_128x128.zip"
    if archive:
        with zipfile.ZipFile(root, "w") as file:
            for value, name in enumerate(names):
                file.writestr(name, grey(value))
    else:
        write(tmp_path, names)
        root = tmp_path / "core50_128x128"
    parts = load_domains(DataConfig(name="core50", root=str(root), test_set="common", test_per_class=3))
    assert [part.name for part in parts] == ["s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11"]
    assert parts[0].train.classes == ("o1", "o2", "o10")
    assert all(part.test is parts[0].test and len(part.train) == 12 for part in parts)
    test = parts[0].test
    assert sorted({test.name(i).split("/")[-3] for i in range(len(test))}) == ["s10", "s3", "s7"]
    assert np.bincount(test.labels).tolist() == [3, 3, 3]
    stream = stream_of(parts, data={"test_set": "common"})
    assert stream.one_test
    assert len(stream.tasks) == 8
    if not archive:
        for frame in (root / "s7").rglob("*.png"):
            frame.unlink()
        with pytest.raises(UserError, match="session s7 has no frames"):
            load_domains(DataConfig(name="core50", root=str(root)))
