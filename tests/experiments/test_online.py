"""Streams that are learned in one pass: images are answered before they are learned, whatever the method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY_VIT, make_config, merged, refused, run_quietly
from rich.console import Console

from promptcl.backbone import Backbone
from promptcl.config import Config
from promptcl.data import load_domains, make_stream
from promptcl.errors import UserError
from promptcl.experiments.metrics import anytime_accuracy, online_accuracy
from promptcl.experiments.online import anytime
from promptcl.experiments.progress import QuietUi, RichUi
from promptcl.experiments.run import run
from promptcl.learner.learner import Learner
from promptcl.recipes.registry import available

BLURRY: dict[str, Any] = {
    "scenario": "blurry",
    "tasks": 3,
    "online": True,
    "data": {"train_per_class": 6, "test_per_class": 3, "augment": "none"},
    "train": {"mask_classes": "batch"},
    "blurry": {"steps": 2, "evaluate_every": 2, "blur": 0.3},
}
METHODS: dict[str, dict[str, Any]] = {
    "ncm": {"name": "ncm"},
    "ridge": {"name": "ridge"},
    "linear": {"name": "linear"},
    "l2p": {"name": "l2p", "pool_size": 4, "top_k": 2, "prompt_length": 2},
}


def small(**changes: Any) -> Config:
    return make_config(**merged(BLURRY, changes))


def test_online_accuracy_by_hand() -> None:
    assert online_accuracy([[0, 10], [3, 10], [2, 5]]) == 20.0
    assert online_accuracy([]) is None


def test_anytime_accuracy_by_hand() -> None:
    assert anytime_accuracy([(2, 50.0), (4, 80.0), (6, 20.0)]) == pytest.approx(50.0)  # even distances: the mean
    assert anytime_accuracy([(4, 50.0), (5, 100.0)]) == pytest.approx(60.0)  # (4 * 50 + 1 * 100) / 5
    assert anytime_accuracy([]) is None
    assert anytime([{"task": 3, "seen_accuracy": 50.0}, {"task": 4}]) is None


@pytest.mark.parametrize("name", METHODS)
def test_images_are_answered_before_they_are_learned(name: str, backbone: Backbone, tmp_path: Path) -> None:
    """The same by hand: predict each micro-task, then learn it; a class that was never seen is wrong."""
    config = small(method=METHODS[name])
    results = run_quietly(config, tmp_path)
    learner, right, images, points = Learner(config, backbone), [], [], []
    stream = make_stream(load_domains(config.data), config)
    for t, task in enumerate(stream.tasks):
        names = [task.classes[label] for label in task.train.labels]
        answers = [one.label for one in learner.predict(task.train, threshold=0)] if t else [""] * len(names)
        assert all(answer in learner.classes for answer in answers if t)
        right.append(sum(map(str.__eq__, answers, names)))
        images.append(len(names))
        learner.learn(task.train)
        if t % 2 or t == len(stream.tasks) - 1:
            seen = stream.everything.test.of_classes(learner.classes)
            points.append(learner.evaluate(seen).accuracy)
    answered = [pair for record in results["tasks"] for pair in record["online"]]
    assert answered == [list(pair) for pair in zip(right, images, strict=True)]
    assert sum(images) == 60
    assert right[0] == 0
    assert results["online_accuracy"] == pytest.approx(100 * sum(right) / 60)
    assert [record["online_accuracy"] for record in results["tasks"]] == pytest.approx(
        [100 * sum(right[: n + 1]) / sum(images[: n + 1]) for n in (1, 3)]
    )
    assert [record["seen_accuracy"] for record in results["tasks"]] == pytest.approx(points)
    assert results["anytime_accuracy"] == pytest.approx(sum(points) / 2)
    assert results["forgetting"] is results["learning_accuracy"] is None
    assert results["final_accuracy"] == results["average_accuracy"]


def test_answering_first_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    runs = [
        run_quietly(small(method=METHODS["l2p"], online=online), tmp_path / str(online)) for online in (True, False)
    ]
    assert runs[0]["accuracy_matrix"] == runs[1]["accuracy_matrix"]
    assert runs[0]["anytime_accuracy"] == runs[1]["anytime_accuracy"]
    assert runs[1]["online_accuracy"] is None
    assert all("online" not in record for record in runs[1]["tasks"])


def verdict(config: Config, backbone: Backbone) -> str:
    """Why a learner is refused; nothing where it is not."""
    try:
        Learner(config, backbone)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", sorted(available("methods")))
def test_a_method_is_refused_by_name_in_both_streams_or_in_neither(name: str, backbone: Backbone) -> None:
    said = {verdict(small(scenario=one, method={"name": name}), backbone) for one in ("gaussian", "blurry")}
    assert len(said) == 1
    sentence = f"method.name={name} with these options needs to know where tasks end"
    assert all(one == "" if name in METHODS else one == "" or one.startswith(sentence) for one in said)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["train.epochs=2"], "online=true measures images before their only pass; write train.epochs=1"),
        (["train.min_steps=20"], "online=true measures images before their only pass"),
        (["joint=true", "online=true"], "online=true is not read with joint=true"),
        (["scenario=class", "online=true"], "online=true is not read with scenario=class; leave it out, or write scen"),
        (["tasks=[2,8]"], "tasks has to be a number with scenario=blurry"),
        (["method.name=dualprompt"], "method.name=dualprompt with these options needs to know where tasks end"),
        (["method.name=l2p_ridge"], "method.name=l2p_ridge with these options needs to know where tasks end"),
    ],
)
def test_what_cannot_be_is_a_sentence_before_anything_is_written(
    settings: list[str], sentence: str, tmp_path: Path
) -> None:
    data = ["data.name=mnist5k", "data.train_per_class=6", "data.test_per_class=3"]
    assert sentence in refused("train", "siblurry-cifar100", *TINY_VIT, *data, *settings, cwd=tmp_path)


def test_online_accuracy_is_shown(tmp_path: Path) -> None:
    lines: list[str] = []
    results = run(small(method={"name": "ncm"}), tmp_path / "quiet", QuietUi(tmp_path, write=lines.append))
    assert f" online_accuracy {results['tasks'][0]['online_accuracy']:.2f} " in lines[1]
    assert f" online_accuracy {results['online_accuracy']:.2f} " in lines[-1]
    console = Console(record=True, width=100, file=(tmp_path / "shown").open("w"))
    results = run(small(method={"name": "ncm"}), tmp_path / "rich", RichUi(tmp_path, console))
    text = console.export_text()
    assert "average      online" in text
    assert "forgetting" not in text
    assert f"online accuracy{results['online_accuracy']:>21.2f} %" in text
    assert f"anytime accuracy{results['anytime_accuracy']:>20.2f} %" in text
    assert json.loads((tmp_path / "rich" / "results.json").read_text()) == results
