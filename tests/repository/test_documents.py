"""What the documentation says works, works, as printed and by the public names alone.

What docs/adding.md prints is followed by `dev.py wheel`, with an installed wheel.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import forked
import pytest
from helpers import ENVIRONMENT, ROOT, start, write_folders
from PIL import Image

import promptcl
from promptcl.config.schema import DataConfig
from promptcl.data.splits import load_split
from promptcl.learner.export import export

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOOR = {f"promptcl.{name}" for name in [*promptcl.__all__, "__all__", "testing.check_method"]}
# What the pages name besides, and say that it may move.
BESIDES = {"store.md": {"promptcl.store.lock"}, "distributed.md": {"promptcl.runtime.processes"}}


def test_links_between_documents_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_files_named_in_documents_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:tests|benchmarks|examples|scripts)/[a-z0-9_./-]+\.\w+)`", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / name).is_file(), f"{page.name} names {name}, which does not exist"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def imported(code: str) -> set[str]:
    """Full names of what a program imports from promptcl."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {f"import {alias.name}" for alias in node.names}
    return {name for name in names if name.removeprefix("import ").split(".")[0] == "promptcl"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_in_documents_use_public_names(page: Path) -> None:
    for code in blocks(page):
        assert imported(code) <= DOOR | BESIDES.get(page.name, set())


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.py")), ids=lambda file: file.name)
def test_examples_use_public_names(file: Path) -> None:
    assert imported(file.read_text(encoding="utf-8")) <= DOOR


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_text_of_documents_are_public(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = set(re.findall(r"`(?:[^`\n]*[ (])?(promptcl(?:\.\w+)+)", text))
    assert named <= DOOR | BESIDES.get(page.name, set())


STORIES = """
import mine, stories, torch
from promptcl import Sum

class Model(mine.Model):
    def __init__(self, options, backbone, generator):
        super().__init__(options, backbone, generator)
        self.pull_LD = Sum(options.length, backbone.width)

    learn = stories.{story}.learn
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("story", "seen", "warnings"),
    [
        ("TwoStages", [12, 48, 52, 56, 60], ["the prompt hardly moved; write a larger train.lr"] * 5),
        ("Gradient", [12, 28, 28, 28, 28], []),
    ],
)
def test_the_stories_of_adding_can_be_told(story: str, seen: list[int], warnings: list[str], tmp_path: Path) -> None:
    """In the place of the one of mine.py, as the page says; twelve new images a task, sixteen replayed."""
    mine, _, stories, *_ = blocks(ROOT / "docs" / "adding.md")
    for name, text in (("mine", mine), ("stories", stories), ("told", STORIES.format(story=story))):
        (tmp_path / f"{name}.py").write_text(text)
    few = ["data.train_per_class=6", "data.test_per_class=4", "memory.per_class=2", "train.epochs=1", "train.lr=1e-5"]
    done = start("train", "demo", "method.name=told", *few, "--trust", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("results.json")
    results = json.loads(file.read_text())
    assert [task["train_images"] for task in results["tasks"]] == seen
    assert results["warnings"] == warnings


@pytest.mark.slow
@pytest.mark.parametrize("page", ["store.md", "distributed.md"])
def test_programs_of_other_pages_run_as_printed(page: str, tmp_path: Path) -> None:
    for code in blocks(ROOT / "docs" / page):
        done = forked.program(code, tmp_path, ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        for line in re.findall(r"print\(.*\)  # (.*)", code):
            assert line in done.stdout


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def smaller(code: str, recipe: str, settings: list[str]) -> str:
    """The code with another recipe or settings in the place of its own; nothing else is changed."""
    changed = re.sub(r'load_config\("[\w-]+"(, \[[^\]]*\])?\)', f"load_config({recipe!r}, {settings!r})", code)
    assert changed != code
    return changed


@pytest.mark.slow
def test_the_python_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """On the ViT inside the package, with fewer digits."""
    (code,) = blocks(ROOT / "README.md")
    exec(compile(smaller(code, "demo", ["data.train_per_class=12", "data.test_per_class=5"]), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines] == [str((str(k), str(k + 1))) for k in range(0, 10, 2)]
    assert all(
        float(line.rsplit(" ", 1)[1]) > 50 for line in lines
    )  # each task when it was learned; chance is 10 to 50


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    """But for the speed, and for the few images that another machine's last bits may move."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, words, shown = re.split(r"<!-- output: promptcl (train demo .*) -->\n", text)[0:3]
    printed = start(*words.split(), cwd=tmp_path).stdout
    pattern = r"^(average accuracy|forgetting|learning accuracy|average incremental accuracy) +([\d.]+) %$"
    ours, theirs = (dict(re.findall(pattern, part, re.M)) for part in (shown, printed))
    assert list(ours) == list(theirs) != []
    assert all(abs(float(ours[key]) - float(theirs[key])) < 1.5 for key in ours)


@pytest.mark.slow
def test_the_python_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With digits for the images of the shop, and the small ViT; the exported programs answer as the learner does."""
    split = load_split(DataConfig(name="mnist5k", train_per_class=12, test_per_class=4))
    for folder, images in (("monday", split.train), ("test", split.test)):
        write_folders(images.of_classes(["0", "1"]), tmp_path / folder)
    with Image.open(tmp_path / "test" / "0" / "0000.png") as digit:  # wide, and turned by its EXIF tag
        exif = Image.Exif()
        exif[0x0112] = 6
        digit.convert("RGB").resize((130, 61)).save(tmp_path / "photo.jpg", exif=exif)
    monkeypatch.chdir(tmp_path)
    learned, *exported = blocks(ROOT / "docs" / "guide.md")
    names: dict[str, Any] = {}
    settings = ["data.eval_crop=0.8"]
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
        assert names["familiarity"] == pytest.approx(wanted.familiarity, abs=1e-3)
        assert names["answer"](names["probabilities"], names["familiarity"]) == wanted.label
    assert names["answer"]([1.0, 0.0], names["about"]["threshold"] - 0.01) == "unknown"
