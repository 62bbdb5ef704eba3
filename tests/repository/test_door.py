"""The public door: the names that `promptcl` offers, what they cost, and what a type checker knows of them."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT, SOURCES

import promptcl

PUBLIC = [
    *("Backbone", "Batch", "Change", "Config", "Evaluation", "ImageSet", "LearnRecord", "Learner", "Method"),
    *("Prediction", "Prefix", "Stage", "Sum", "TaskView", "Tokens", "UserError", "Weight", "__version__"),
    *("class_incremental", "domain_incremental", "load_config", "load_split"),
]
TYPED = """
from collections.abc import Iterator

from promptcl import (
    Backbone, Batch, Change, Config, Evaluation, ImageSet, LearnRecord, Learner, Method, Prediction, Prefix, Stage, Sum,
    TaskView, Tokens, UserError, __version__, class_incremental, domain_incremental, load_config, load_split,
)
from promptcl.testing import check_method

config: Config = load_config("demo", ["seed=1"])
learner = Learner(config)
for task in class_incremental(load_split(config.data), tasks=5):
    images: ImageSet = task.train
    record: LearnRecord = learner.learn(images)
    found: Evaluation = learner.evaluate(task.test)
    reveal_type(found.accuracy)
answers: list[Prediction] = learner.predict("photo.jpg", top=3)
reveal_type(answers[0].label)
reveal_type(learner.backbone.width)
reveal_type(__version__)
reveal_type(check_method("ncm"))


class Model(Method):
    def learn(self, backbone: Backbone, task: TaskView) -> Iterator[Stage]:
        seen = Sum(backbone.width)
        for batch in task.batches():
            seen.add(batch.query_BD.sum(0))
            reveal_type(batch)
        yield Stage(task.new)


learner.lern(images)
load_config(3)
from promptcl import Lerner
"""


def test_the_names_are_these() -> None:
    """Adding one is a decision, taking one away breaks somebody's program: this list is changed by hand."""
    assert sorted(promptcl.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there(name: str) -> None:
    value = getattr(promptcl, name)
    assert name == "__version__" or value.__name__ == name
    assert name == "__version__" or value.__doc__


def test_dir_shows_them() -> None:
    assert dir(promptcl) == sorted(PUBLIC)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'promptcl' has no attribute 'Lerner'"):
        promptcl.Lerner  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="Lerner"):
        from promptcl import Lerner  # type: ignore[attr-defined]  # noqa: F401


def test_the_version_is_that_of_the_installed_package() -> None:
    assert promptcl.__version__ == importlib.metadata.version("promptcl")


@pytest.mark.slow
def test_check_method_is_there() -> None:
    """Without an import of its own, too."""
    code = "import promptcl; print(promptcl.testing.check_method.__module__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "promptcl.testing\n"
    from promptcl.testing import check_method

    assert promptcl.testing.check_method is check_method


@pytest.mark.slow
def test_it_costs_nothing_until_a_name_is_used() -> None:
    code = (
        "import sys, promptcl\n"
        "from promptcl import UserError, load_config, Config\n"
        "heavy = {'torch', 'timm', 'torchvision', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "promptcl.Learner\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)


@pytest.mark.slow
def test_a_type_checker_knows_them(tmp_path: Path) -> None:
    file = tmp_path / "uses.py"
    file.write_text(TYPED)
    # In the checkout and by its settings, so that what `dev.py check` has found out need not be found out again.
    command = [sys.executable, "-m", "mypy", "--no-color-output", "--no-error-summary", str(file)]
    environment = {**ENVIRONMENT, "MYPYPATH": SOURCES}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if "uses.py:" in line]
    assert said == [
        'note: Revealed type is "float"',
        'note: Revealed type is "str"',
        'note: Revealed type is "int"',
        'note: Revealed type is "str"',
        'note: Revealed type is "dict[str, str]"',
        'note: Revealed type is "promptcl.methods._base.Batch"',
        'error: "Learner" has no attribute "lern"; maybe "learn"?  [attr-defined]',
        'error: Argument 1 to "load_config" has incompatible type "int"; expected "str"  [arg-type]',
        'error: Module "promptcl" has no attribute "Lerner"; maybe "Learner"?  [attr-defined]',
    ], done.stdout + done.stderr
