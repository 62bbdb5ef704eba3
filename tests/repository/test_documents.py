"""What the documentation says works, works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import ROOT, write_folders
from PIL import Image

from promptcl.backbone.vit import Backbone
from promptcl.config.schema import BackboneConfig, DataConfig
from promptcl.data import datasets
from promptcl.data.splits import load_split
from promptcl.errors import UserError
from promptcl.learner.export import export
from promptcl.methods._base import Batch, load_method
from promptcl.runtime.seeding import task_generator


def test_the_method_of_the_adding_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(encoding="utf-8"), re.S)[0]
    module = ModuleType("promptcl.methods.mine")
    monkeypatch.setitem(sys.modules, "promptcl.methods.mine", module)
    exec(compile(code, "adding.md", "exec"), module.__dict__)
    model = load_method("mine")
    backbone = Backbone.create(BackboneConfig(name="test_vit", weights="random", image_size=32))
    method = model(model.Options(), backbone.width, task_generator(0, 0, "test"))
    method.grow(3, task_generator(0, 0, "grow"))
    images = torch.rand(2, 3, 32, 32)
    loss = method.loss(backbone, Batch(images, backbone.query(images), torch.tensor([0, 2])), None)
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-6)
    gradients = {name: p.grad is not None for name, p in method.named_parameters()}
    assert gradients == {"prompt_LD": True, "head.weight_KD": True, "head.bias_K": True}


def test_the_data_set_of_the_adding_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file among the others, found by its name."""
    (tmp_path / "mine.py").write_text(blocks("docs/adding.md")[1])
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    rows = [("a.png", "red", "train"), ("b.png", "blue", "train"), ("c.png", "red", "test"), ("d.png", "blue", "test")]
    for i, (path, name, _) in enumerate(rows):
        Image.new("RGB", (8 + i, 5), name).save(tmp_path / path)
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, [("path", "class", "part"), *rows])))
    split = load_split(DataConfig(name="mine", root=str(tmp_path / "list.csv")))
    assert split.train.classes == split.test.classes == ("blue", "red")
    assert (split.train.labels.tolist(), split.test.labels.tolist()) == ([1, 0], [1, 0])
    assert split.test.image(1).shape == (3, 5, 11)
    assert split.test.image(1)[:, 0, 0].tolist() == [0, 0, 255]
    with pytest.raises(UserError, match=r"data\.root=FILE"):
        load_split(DataConfig(name="mine"))
    sys.modules.pop("promptcl.data.datasets.mine")


def test_links_between_documents_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_files_named_in_documents_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(
            r"`((?:tests|benchmarks|examples|scripts)/[a-z0-9_./-]+\.\w+)`", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / name).is_file(), f"{page.name} names {name}, which does not exist"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def smaller(code: str, recipe: str, settings: list[str]) -> str:
    """The code with another recipe or settings in the place of its own; nothing else is changed."""
    changed = re.sub(r'load_config\("[\w-]+"\)', f"load_config({recipe!r}, {settings!r})", code)
    assert changed != code
    return changed


@pytest.mark.slow
def test_the_python_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """On the ViT inside the package, with fewer digits."""
    (code,) = blocks("README.md")
    exec(compile(smaller(code, "demo", ["data.train_per_class=12", "data.test_per_class=5"]), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines] == [str((str(k), str(k + 1))) for k in range(0, 10, 2)]
    assert all(
        float(line.rsplit(" ", 1)[1]) > 50 for line in lines
    )  # each task when it was learned; chance is 10 to 50


@pytest.mark.slow
def test_the_python_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With digits for the images of the shop, and the small ViT; the exported programs answer as the learner does."""
    split = load_split(DataConfig(name="mnist5k", train_per_class=8, test_per_class=4))
    for folder, images in (("monday", split.train), ("test", split.test)):
        write_folders(images.of_classes(["0", "1"]), tmp_path / folder)
    with Image.open(tmp_path / "test" / "0" / "0000.png") as digit:  # wide, and turned by its EXIF tag
        exif = Image.Exif()
        exif[0x0112] = 6
        digit.convert("RGB").resize((130, 61)).save(tmp_path / "photo.jpg", exif=exif)
    monkeypatch.chdir(tmp_path)
    learned, *exported = blocks("docs/guide.md")
    names: dict[str, Any] = {}
    settings = ["train.epochs=1", "train.min_steps=4", "data.eval_crop=0.8"]
    exec(compile(smaller(learned, "grow-demo", settings), "guide.md", "exec"), names)
    assert len(names["answer"].top) == 2  # of three asked for: it knows two classes
    wanted = names["answer"]
    export(names["learner"], tmp_path / "shop.pt2")
    export(names["learner"], tmp_path / "shop.onnx")
    assert "Skipping" not in caplog.text
    assert len(exported) == 2
    for code in exported:
        exec(compile(code, "guide.md", "exec"), names)
        assert dict(zip(names["about"]["classes"], names["probabilities"], strict=True)) == pytest.approx(
            dict(wanted.top), abs=1e-4
        )
        assert names["answer"](names["probabilities"]) == wanted.label
