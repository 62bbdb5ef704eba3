"""Data sets whose splits are lists, each on a small tree of its true layout."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io  # type: ignore[import-untyped]
import torchvision
import yaml
from helpers import grey

from promptcl.config.schema import DataConfig
from promptcl.data.images import ImageSet
from promptcl.data.splits import Split, load_domains, load_split
from promptcl.errors import UserError

Files = dict[str, bytes | str]


def write(root: Path, files: Files) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def names(images: ImageSet) -> list[tuple[str, str]]:
    """The last two parts of each image's path, and its class."""
    found = []
    for i in range(len(images)):
        found.append(("/".join(images.name(i).split("/")[-2:]), images.classes[images.labels[i]]))
        assert images.image(i).shape == (3, 4, 4)
    return found


def load(name: str, root: Path) -> Split:
    return load_split(DataConfig(name=name, root=str(root)))


WNIDS = ("n02051845", "n01443537")


def imagenet_r(root: Path) -> Path:
    images: Files = {f"imagenet-r/{w}/art_{i}.jpg": grey(i, "jpeg") for w in WNIDS for i in range(5)}
    return write(root, {**images, "imagenet-r/README.txt": "n01443537 goldfish"}) / "imagenet-r"


def test_imagenet_r_without_a_split_as_folder_and_as_tar(tmp_path: Path) -> None:
    folder = imagenet_r(tmp_path)
    with tarfile.open(tmp_path / "imagenet-r.tar", "w") as tar:
        tar.add(folder, "imagenet-r")
    for root in (folder, tmp_path / "imagenet-r.tar"):
        split = load("imagenet_r", root)
        assert split.train.classes == split.test.classes == ("n01443537", "n02051845")
        assert names(split.test) == [(f"{w}/art_4.jpg", w) for w in sorted(WNIDS)]
        assert len(split.train) == 8


@pytest.mark.parametrize("prefix", ["", "imagenet-r/", "data/imagenet-r/", "./"])
def test_imagenet_r_with_lists(prefix: str, tmp_path: Path) -> None:
    folder = imagenet_r(tmp_path)
    rows = {"train": [(WNIDS[0], 0, 1), (WNIDS[1], 3, 0)], "test": [(WNIDS[0], 2, 1), (WNIDS[1], 1, 0)]}
    for part, row in rows.items():
        text = "".join(f"{prefix}{w}/art_{i}.jpg {label}\n" for w, i, label in row)
        write(folder, {f"imagenet-r_{part}.txt": text})
    split = load("imagenet_r", folder)
    assert names(split.train) == [("n02051845/art_0.jpg", "n02051845"), ("n01443537/art_3.jpg", "n01443537")]
    assert names(split.test) == [("n02051845/art_2.jpg", "n02051845"), ("n01443537/art_1.jpg", "n01443537")]
    (folder / "imagenet-r_test.txt").write_text(f"{WNIDS[0]}/gone.jpg 0\n")
    with pytest.raises(UserError, match=r"'n02051845/gone.jpg' of a list in .* is not there"):
        load("imagenet_r", folder)
    (folder / "imagenet-r_test.txt").write_text(f"{WNIDS[0]}/art_1.jpg 1\n")
    (folder / "imagenet-r_train.txt").write_text(f"{WNIDS[1]}/art_1.jpg 0\n")
    with pytest.raises(UserError, match=r"have images of .n02051845. to test and none to learn"):
        load("imagenet_r", folder)
    (folder / "imagenet-r_test.txt").unlink()
    with pytest.raises(UserError, match=r"has imagenet-r_train.txt alone"):
        load("imagenet_r", folder)


def test_imagenet_r_with_the_lists_of_coda_prompt(tmp_path: Path) -> None:
    folder = imagenet_r(tmp_path)
    rows = {"train": [(WNIDS[0], 0, 1), (WNIDS[1], 3, 0)], "test": [(WNIDS[0], 2, 1), (WNIDS[1], 1, 0)]}
    for part, row in rows.items():
        columns = {"data": [f"data/imagenet-r/{w}/art_{i}.jpg" for w, i, _ in row], "targets": [k for *_, k in row]}
        write(folder, {f"imagenet-r_{part}.yaml": yaml.safe_dump(columns)})
    split = load("imagenet_r", folder)
    assert names(split.train) == [("n02051845/art_0.jpg", "n02051845"), ("n01443537/art_3.jpg", "n01443537")]
    assert names(split.test) == [("n02051845/art_2.jpg", "n02051845"), ("n01443537/art_1.jpg", "n01443537")]


@pytest.mark.parametrize(
    "text",
    [
        *("data: [a.jpg]", "data: [a.jpg]\ntargets: []", "[", "- a", "data: 3\ntargets: 3", "data: [3]\ntargets: [3]"),
        *(
            'data: !!int ""',
            'data: !!float ""',
            "data: !!timestamp 2021-99-99",
            "[" * 200_000,
            "data: &a [a.jpg]\ntargets: *a",
        ),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_other_yaml_than_coda_prompts_is_refused(text: str, tmp_path: Path) -> None:
    folder = write(imagenet_r(tmp_path), {"imagenet-r_train.yaml": text, "imagenet-r_test.yaml": text})
    with pytest.raises(UserError, match=r"imagenet-r_t\w+.yaml is no list of images, two lists `data` and `targets`"):
        load("imagenet_r", folder)


def test_lists_of_two_splits_are_refused_and_other_yaml_is_none(tmp_path: Path) -> None:
    folder = imagenet_r(tmp_path)
    write(folder, {"train.yaml": "epochs: 3", "finetune_train.yaml": "lr: 1"})
    assert len(load("imagenet_r", folder).train) == 8
    rows = "".join(f"{w}/art_{i}.jpg {k}\n" for k, w in enumerate(WNIDS) for i in range(2))
    write(folder, {"train.txt": rows, "test.txt": rows})
    assert len(load("imagenet_r", folder).test) == 4
    write(folder, {"imagenet-r_test.txt": rows})
    with pytest.raises(
        UserError, match=r"lists of several splits \(imagenet-r_test.txt, test.txt, train.txt\); leave one"
    ):
        load("imagenet_r", folder)
    (folder / "test.txt").unlink()
    with pytest.raises(UserError, match=r"lists of several splits \(imagenet-r_test.txt, train.txt\)"):
        load("imagenet_r", folder)


def test_imagenet_r_in_folders_of_a_split(tmp_path: Path) -> None:
    parts = ("train", "test")
    images: Files = {f"{part}/{w}/{i}.jpg": grey(i, "jpeg") for w in WNIDS for part in parts for i in range(2)}
    split = load("imagenet_r", write(tmp_path, images))
    assert (len(split.train), len(split.test), split.train.classes) == (4, 4, ("n01443537", "n02051845"))


def domainnet(root: Path) -> Path:
    files: Files = {}
    for domain in ("sketch", "clipart"):
        for part, numbers in (("train", (1, 2)), ("test", (3,))):
            lines = ""
            for label, name in enumerate(("aircraft_carrier", "zigzag")):
                for i in numbers:
                    path = f"{domain}/{name}/{domain}_{label:03}_{i:06}.jpg"
                    files[path] = grey(i, "jpeg")
                    lines += f"{path} {label}\n"
            files[f"{domain}_{part}.txt"] = lines
    return write(root, files)


def test_domainnet(tmp_path: Path) -> None:
    root = domainnet(tmp_path)
    domains = load_domains(DataConfig(name="domainnet", root=str(root)))
    assert [domain.name for domain in domains] == ["clipart", "sketch"]
    assert domains[0].train.classes == domains[1].test.classes == ("aircraft_carrier", "zigzag")
    assert names(domains[1].test)[0] == ("aircraft_carrier/sketch_000_000003.jpg", "aircraft_carrier")
    assert [len(domain.train) for domain in domains] == [4, 4]
    assert domains[0].train.sources == domains[1].train.sources  # one memory budget
    (one,) = load_domains(DataConfig(name="domainnet", root=str(root), order=("sketch",), validation_per_class=1))
    assert (len(one.train), len(one.test)) == (2, 2)
    with pytest.raises(UserError, match=r"data.order has 'real', which is not one of the domains: clipart, sketch"):
        load_domains(DataConfig(name="domainnet", root=str(root), order=("real",)))


def cub200(root: Path) -> Path:
    classes = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    paths = [f"{name}/{name[4:]}_{i:04}_{i}.jpg" for name in classes for i in range(3)]
    files: Files = {f"CUB_200_2011/images/{path}": grey(i, "jpeg") for i, path in enumerate(paths)}
    lists: dict[str, list[str]] = {
        "images": paths,
        "image_class_labels": list("111222"),
        "train_test_split": list("011101"),
    }
    for name, values in lists.items():
        files[f"CUB_200_2011/{name}.txt"] = "".join(f"{i} {value}\n" for i, value in enumerate(values, start=1))
    files["CUB_200_2011/classes.txt"] = "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n"
    files["CUB_200_2011/bounding_boxes.txt"] = "1 60.0 27.0 325.0 304.0\n"
    return write(root, files)


def test_cub200(tmp_path: Path) -> None:
    root = cub200(tmp_path)
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(root / "CUB_200_2011", "CUB_200_2011")
    for where in (root / "CUB_200_2011", tmp_path / "CUB_200_2011.tgz"):
        split = load("cub200", where)
        assert split.train.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
        assert len(split.train) == 4
        assert [label for _, label in names(split.test)] == list(split.train.classes)
        assert names(split.test)[1][0] == "002.Laysan_Albatross/Laysan_Albatross_0001_1.jpg"
    (root / "CUB_200_2011" / "train_test_split.txt").write_text("1 0\n")
    with pytest.raises(UserError, match=r"image 2 of images.txt in .* has no class or no split"):
        load("cub200", root / "CUB_200_2011")


def test_tiny_imagenet(tmp_path: Path) -> None:
    top = "tiny-imagenet-200"
    files: Files = {f"{top}/train/{w}/images/{w}_{i}.JPEG": grey(i, "jpeg") for w in WNIDS for i in range(2)}
    files |= {f"{top}/train/{w}/{w}_boxes.txt": f"{w}_0.JPEG\t0\t10\t63\t58\n" for w in WNIDS}
    rows = [("val_0.JPEG", WNIDS[0]), ("val_1.JPEG", WNIDS[1])]
    files |= {f"{top}/val/images/{name}": grey(7, "jpeg") for name, _ in rows}
    files[f"{top}/val/val_annotations.txt"] = "".join(f"{n}\t{w}\t0\t32\t44\t62\n" for n, w in rows)
    files[f"{top}/test/images/test_0.JPEG"] = grey(9, "jpeg")
    files[f"{top}/wnids.txt"] = "\n".join(WNIDS)
    split = load("tiny_imagenet", write(tmp_path, files) / top)
    assert split.train.classes == ("n01443537", "n02051845")
    assert len(split.train) == 4
    assert names(split.test) == [("images/val_0.JPEG", WNIDS[0]), ("images/val_1.JPEG", WNIDS[1])]


def test_food101_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    listed = {
        "train": {"pizza": ["pizza/1", "pizza/2"], "apple_pie": ["apple_pie/3"]},
        "test": {"pizza": ["pizza/4"], "apple_pie": ["apple_pie/5"]},
    }
    files: Files = {f"food-101/meta/{part}.json": json.dumps(rows) for part, rows in listed.items()}
    for rows in listed.values():
        files |= {f"food-101/images/{path}.jpg": grey(1, "jpeg") for paths in rows.values() for path in paths}
    split = load("food101", write(tmp_path, files) / "food-101")
    theirs = torchvision.datasets.Food101(tmp_path, split="train")
    assert split.train.classes == tuple(theirs.classes)
    paths = [f"{path.parent.name}/{path.name}" for path in theirs._image_files]
    assert sorted(path for path, _ in names(split.train)) == sorted(paths)
    assert sorted(names(split.test)) == [("apple_pie/5.jpg", "apple_pie"), ("pizza/4.jpg", "pizza")]


def test_flowers102_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    def mat(**arrays: list[int]) -> bytes:
        file = io.BytesIO()
        scipy.io.savemat(file, {name: np.array([values], np.uint8) for name, values in arrays.items()})
        return file.getvalue()

    files: Files = {f"flowers-102/jpg/image_{i:05}.jpg": grey(i, "jpeg") for i in range(1, 7)}
    files["flowers-102/imagelabels.mat"] = mat(labels=[2, 2, 1, 1, 1, 2])
    files["flowers-102/setid.mat"] = mat(trnid=[1, 4], valid=[2], tstid=[3, 6, 5])
    split = load("flowers102", write(tmp_path, files) / "flowers-102")
    pink, orchid = split.train.classes
    assert (pink, orchid) == ("pink primrose", "hard-leaved pocket orchid")
    assert names(split.train) == [("jpg/image_00001.jpg", orchid), ("jpg/image_00004.jpg", pink)]
    assert [label for _, label in names(split.test)] == [pink, orchid, pink]


def test_eurosat(tmp_path: Path) -> None:
    kinds, numbers = ("Forest", "AnnualCrop"), range(1, 11)
    images: Files = {f"eurosat/2750/{kind}/{kind}_{i}.jpg": grey(i, "jpeg") for kind in kinds for i in numbers}
    for root in (write(tmp_path, images) / "eurosat", tmp_path / "eurosat" / "2750"):
        split = load("eurosat", root)
        assert split.train.classes == ("AnnualCrop", "Forest")
        assert len(split.train) == 16
        assert names(split.test)[:2] == [(f"AnnualCrop/AnnualCrop_{i}.jpg", "AnnualCrop") for i in (9, 10)]


@pytest.mark.parametrize("name", ["imagenet_r", "cub200", "domainnet", "tiny_imagenet", "food101", "eurosat"])
def test_what_is_missing_is_said(name: str, tmp_path: Path) -> None:
    write(tmp_path, {"a/b.txt": "x"})
    with pytest.raises(UserError, match=r"expected .*folder"):
        load(name, tmp_path)
