"""The benchmark, and that the plain engine it compares with does the same mathematics as promptcl."""

from __future__ import annotations

import json
from typing import Any

import plain
import pytest
import torch
from helpers import make_config
from typer.testing import CliRunner

from promptcl.cli.main import app
from promptcl.cli.report import lines
from promptcl.data.splits import load_split
from promptcl.data.stream import class_incremental
from promptcl.experiments import speed as bench
from promptcl.learner.learner import Learner
from promptcl.runtime.seeding import task_generator
from promptcl.training.batches import Batches

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
    learner.make_room(task.classes, 0)
    method: Any = learner.method
    engine = plain.Engine(learner.config, len(task.classes), torch.device("cpu"))
    engine.vit.load_state_dict(learner.backbone.vit.state_dict())
    with torch.no_grad():
        engine.prompts.copy_(method.pool.prompts_MLD)
        engine.keys.copy_(method.pool.keys_MD)
        engine.head.weight.copy_(method.head.weight_KD)
        engine.head.bias.copy_(method.head.bias_K)
    labels_N = torch.as_tensor(task.train.labels)
    batches = Batches(learner.backbone, config, torch.device("cpu"))
    batch = batches.view(task.train, labels_N, torch.arange(8), True, task_generator(0, 0, "test"))
    method.train()
    ours = method.loss(learner.backbone, batch, None)
    assert batch.images_BCHW is not None
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
    assert set(result["stages_seconds"]) == set(bench.STAGES)
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
        (["--engine", "plain", "method.name=ncm"], "it expects method.name=l2p"),
        (["--engine", "plain", "train.min_steps=24"], "it expects train.min_steps=None"),
        (["--rounds", "0"], "--rounds 0: expected a whole number, at least 1"),
    ],
)
def test_engines_that_cannot_be_used(more: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["bench", "l2p", *SETTINGS, "--rounds", "1", "--images", "8", *more])
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_method_without_gradient_steps_is_measured_too() -> None:
    done = CliRunner().invoke(app, ["bench", "l2p", *SETTINGS, "method.name=ncm", "--rounds", "1", "--images", "8"])
    assert done.exit_code == 0, done.output
    assert "images/s" in done.stdout
    assert "arithmetic" not in done.stdout
