"""The benchmark, and that the plain engine it compares with does the same mathematics as promptcl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from helpers import make_config, refused
from typer.testing import CliRunner

from promptcl.cli.main import app
from promptcl.cli.report import lines
from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split
from promptcl.data.stream import class_incremental
from promptcl.experiments import speed as bench
from promptcl.experiments import step as parts
from promptcl.learner.learner import Learner

SETTINGS = [
    "backbone.name=test_vit",
    "backbone.weights=random",
    "backbone.precision=fp32",
    "backbone.image_size=32",
    "data.name=mnist5k",
    "data.train_per_class=8",
    "data.test_per_class=4",
    "train.epochs=1",
    "train.batch_size=8",
    "tasks=5",
]


def test_the_plain_engine_computes_the_same() -> None:
    config = make_config(method={"name": "l2p", "pool_size": 4, "top_k": 2, "prompt_length": 2, "head_init": "uniform"})
    task = class_incremental(load_split(config.data), 5)[0]
    learner = Learner(config)
    with torch.no_grad():
        trainer = learner.trainer(view := learner.begin(task.train))
        run = trainer.prepare(next(learner.method.learn(learner.backbone, view)), 0)
    method: Any = learner.method
    engine = plain.Engine(learner.config, len(task.classes), torch.device("cpu"))
    engine.vit.load_state_dict(learner.backbone.vit.state_dict())
    with torch.no_grad():
        engine.prompts.copy_(method.pool.prompts_MLD)
        engine.keys.copy_(method.pool.keys_MD)
        engine.head.weight.copy_(method.head.weight_KD)
        engine.head.bias.copy_(method.head.bias_K)
    batch, share = trainer.batch(run, 0, torch.arange(len(task.train)))
    assert share == 1
    method.train()
    ours = method.loss(learner.backbone, batch)
    logits_BK, cosines_B = engine._logits(batch.images_BCHW)
    theirs = torch.nn.functional.cross_entropy(logits_BK, batch.labels_B) - 0.5 * cosines_B.mean()
    assert (ours - theirs).abs() < 1e-5
    ours.backward()
    theirs.backward()
    pairs = [
        (method.pool.prompts_MLD, engine.prompts),
        (method.pool.keys_MD, engine.keys),
        (method.head.weight_KD, engine.head.weight),
        (method.head.bias_K, engine.head.bias),
    ]
    for one, other in pairs:
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_both_engines_train_and_are_compared() -> None:
    arguments = ["bench", "l2p", *SETTINGS, "--engine", "plain", "--rounds", "2", "--images", "16", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["train"]["images"] == 16
    assert set(result["stages_seconds"]) == set(parts.STAGES)
    assert 0 < result["share_of_peak"] < 1
    assert result["config"]["backbone"]["weights"] == "random"
    for name in ("train", "evaluate", "evaluate_again"):
        ratio = result["engine"][name]
        assert 0 < ratio["lowest"] <= ratio["median"] <= ratio["highest"]
    # Zero where this process has already used more: the command starts in a fresh one.
    assert result["memory_bytes"] is None or result["memory_bytes"] >= 0
    for line in lines(result):
        assert len(line) <= 80


def test_the_plain_engine_learns() -> None:
    torch.manual_seed(0)
    config = make_config(train={"epochs": 10, "lr": 0.01}, data={"augment": "none"})
    task = class_incremental(load_split(config.data), 5)[0]
    learner = Learner(config)
    engine = plain.Engine(learner.config, 2, torch.device("cpu"))
    engine.vit.load_state_dict(learner.backbone.vit.state_dict())
    engine.train(task.train)
    assert engine.evaluate(task.train) > 75


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--engine", "nothing.py"], "expected `plain`, which only a checkout of promptcl has, or a Python file"),
        (["--engine", "plain", "data.augment=flip"], "it expects data.augment=crop or none"),
        (["--engine", "plain", "method.name=linear"], "it expects method.name=l2p"),
        (["--engine", "plain", "train.min_steps=24"], "it expects train.min_steps=None"),
        (["--rounds", "0"], "--rounds 0: expected a whole number, at least 1"),
    ],
)
def test_engines_that_cannot_be_used(more: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["bench", "l2p", *SETTINGS, "--rounds", "1", "--images", "8", *more])
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def train(): pass\n", "--engine eng.py cannot be used: expected a Python file with a class Engine"),
        (
            "x = 1\nmissing\n",
            "--engine eng.py cannot be used (eng.py line 2: NameError: name 'missing' is not defined)",
        ),
        ("def f(:\n", "--engine eng.py cannot be used (eng.py line 1: invalid syntax)"),
    ],
)
def test_a_file_that_is_no_engine_is_one_sentence(code: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "eng.py").write_text(code)
    words = ["bench", "l2p", *SETTINGS, "--rounds", "1", "--images", "4", "--engine", "eng.py"]
    assert sentence in refused(*words, cwd=tmp_path)


@pytest.mark.slow
def test_a_method_without_gradient_steps_is_measured_too() -> None:
    read = [setting for setting in SETTINGS if not setting.startswith("train.")]
    done = CliRunner().invoke(app, ["bench", "l2p", *read, "method.name=ncm", "--rounds", "1", "--images", "8"])
    assert done.exit_code == 0, done.output
    assert "images/s" in done.stdout
    assert "arithmetic" not in done.stdout


@pytest.mark.slow
def test_where_the_time_of_a_step_goes() -> None:
    """A query that nothing reads is neither computed nor counted; a method without steps has no such parts."""
    found = {}
    for name in ("l2p", "oneprompt", "linear", "ncm"):
        config = make_config(method={"name": name}, eval={"batch_size": 8})
        found[name] = bench.run(config, None, rounds=1, count=16, before=None)
        assert found[name]["train"]["images"] == 16
        assert found[name]["evaluate"]["images_per_second"] > 0
    for name in ("l2p", "oneprompt", "linear"):
        assert set(found[name]["stages_seconds"]) == set(parts.STAGES)
        assert found[name]["gflops"] > 0
    assert "stages_seconds" not in found["ncm"]
    assert "gflop_per_image" not in found["ncm"]
    learner = Learner(make_config())
    forward = parts._flops(lambda: learner.backbone.query(torch.zeros(1, 3, 32, 32))) / 1e9
    assert found["linear"]["gflop_per_image"] == pytest.approx(forward, rel=0.01)  # the query is nearly all of it
    seconds = {name: found[name]["stages_seconds"]["query"] for name in ("l2p", "oneprompt")}
    assert seconds["oneprompt"] < seconds["l2p"] / 10  # a call that does nothing


@pytest.mark.parametrize(("name", "reads"), [("l2p", True), ("linear", True), ("oneprompt", False)])
def test_the_query_counts_where_it_is_read(name: str, reads: bool, digits: list[ImageSet]) -> None:
    for view in ("augmented", "clean"):
        learner = Learner(make_config(method={"name": name}, train={"query_view": view}))
        with torch.no_grad():
            task = learner.begin(digits[0])
            stage = next(learner.method.learn(learner.backbone, task))
        trainer = learner.trainer(task)
        learner.method.train()
        counted = parts._Step(learner, trainer, trainer.prepare(stage, 0), torch.arange(16), 0).count()
        assert (counted["query"] > 0) == reads
        assert counted["student"] > 0
        assert counted["images"] == 8
