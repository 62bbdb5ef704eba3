"""Every method keeps the contract, and a method that does not is found out."""

from __future__ import annotations

import contextlib
from typing import Any

import broken_methods
import pytest
from helpers import REMEMBERS, make_config

from promptcl import testing
from promptcl.backbone.vit import Backbone
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.methods._base import Method
from promptcl.recipes import available
from promptcl.testing import check_method
from promptcl.testing.bench import named
from promptcl.testing.checks import CHECKS
from promptcl.testing.documented import undocumented

# Options that change what a method does in a task, beside the defaults of all methods.
OPTIONS = [
    ("l2p", {"diversify": "frequency"}),
    ("l2p", {"diversify": "slots", "top_k": 2}),
    ("oneprompt", {"outliers": "boundary", "outlier_epochs": 1}),
    ("vq", {"align_epochs": 1, "align_samples": 64, "covariance": "diagonal"}),
    ("ranpac", {"features": "deep", "width": 0, "adapt": "adapter", "size": 4, "cosine": 0.5}),
    ("ranpac", {"width": 60, "adapt": "prompts", "size": 2}),
    ("ewc", {"anchor": "separate", "fisher": "model", "blocks": 1}),
    ("ewc", {"anchor": "moving", "every": 2}),
    ("lwf", {"warmup": 1}),
    ("derpp", {"draws": 2}),
    ("gdumb", {"cutmix": 0.5}),
]
# Shorter alignments: each step is interrupted once.
ALIGNED = {"align_epochs": 1, "align_samples": 64}
QUICK: dict[str, dict[str, Any]] = {
    "hide": {**ALIGNED, "head_share": 1.0, "finder_share": 0.2},
    "slca_lora": {**ALIGNED, "share": 1.0, "first_share": 1.0},
    "fsa": {**ALIGNED, "align_batch": 32},
    "anacp": {"width": 60, "ridge": 0.1},
    "e2lora": {**ALIGNED, "rank": 16},
    "tuna": ALIGNED,
    "bic": {"bias_steps": 4},
    "co2l": {"head_epochs": 5},
    "slca": {**ALIGNED, "share": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", available("methods"))
def test_every_method(name: str) -> None:
    said = check_method(name, QUICK.get(name), REMEMBERS.get(name))
    assert len(said) == len(CHECKS)
    assert all(result.startswith(("passed", "refused: ")) for result in said.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_methods_with_other_options(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "ranpac":  # the options of the others change nothing in how they answer, so nothing in what is exported
        monkeypatch.setattr(testing, "CHECKS", [check for check in CHECKS if check.__name__ != "_exported"])
    check_method(name, options, REMEMBERS.get(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tests.rows_method", {}),
        ("ridge", {"features": "deep", "cosine": 0.5, "rows": 1000}),
        ("ranpac", {"width": 60, "rows": 1000}),
        ("ncm", {"rows": 1000}),
    ],
    ids=str,
)
def test_methods_that_can_take_images_away(name: str, options: dict[str, Any]) -> None:
    assert check_method(name, options)["mended"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"vote": "batch", "vote_size": 4}])
def test_who_votes_is_refused_where_neighbours_matter(options: dict[str, Any]) -> None:
    said = check_method("l2p", options)
    assert said["neighbours do not matter"].startswith("refused: `together`")
    assert said["no boundaries"] == "passed"
    assert check_method("dualprompt", options)["no boundaries"].startswith("refused: ")


BROKEN = {
    broken_methods.DrawsGlobally: "the global random state was used",
    broken_methods.Unseeded: "the same seed and images gave another state",
    broken_methods.Unmoved: "no better than chance",
    broken_methods.ChangesViT: "the frozen ViT was changed",
    broken_methods.ChangesImages: "input images were changed",
    broken_methods.Forgets: r"state_dict\(\) lacks what the answers depend on",
    broken_methods.KeepsInModule: "loaded in another process it answers otherwise",
    broken_methods.GrowsInLearn: "`grow` alone may change shapes",
    broken_methods.Peeks: "answer otherwise among other neighbours",
    broken_methods.CountsCalls: r"interrupted at event \d of 3 .* and continued, it has another state",
    broken_methods.AddsAlone: "two processes answer otherwise than one: .* belongs into a Sum",
    broken_methods.AnswersAsOnce: "a feature that `once` keeps depends on what it was not told of",
    broken_methods.ForgetsNothing: "after a class was forgotten it answers otherwise than one that never learned that",
    broken_methods.SaysLittle: "the option silent needs a docstring",
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "why"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_method_is_found_out(method: type[Method], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        check_method(method)


def test_a_method_names_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken_methods, "__doc__", "Learns classes.")
    with pytest.raises(AssertionError, match=r"the docstring 'Learns classes.' names no source"):
        check_method(broken_methods.Peeks)


def test_what_a_method_raises_is_said_with_the_check_that_it_broke() -> None:
    with pytest.raises(AssertionError, match=r"^better than chance: ValidationError: [^$]*nonsense"):
        check_method("linear", {"nonsense": 1})


def test_options_inherit_their_docstrings() -> None:
    assert undocumented(broken_methods.SaysLittleOptions) == ["silent"]


def test_a_class_has_a_name_that_is_found_again() -> None:
    assert named(broken_methods.Peeks) == named(broken_methods.Peeks) != named(broken_methods.Forgets)


def test_who_learns_without_boundaries_and_who_is_refused(backbone: Backbone) -> None:
    """As docs/methods.md has it; those that are refused are so before anything is learned."""
    learn = {"anacp", "ranpac"}  # which adapt nothing by default
    learn |= {"derpp", "er", "finetune", "gdumb", "l2p", "l2p_prefix", "linear", "ncm", "oneprompt", "ridge", "vq"}
    for name in available("methods"):
        config = make_config(scenario="gaussian", method={"name": name}, **REMEMBERS.get(name, {}))
        refused = contextlib.nullcontext() if name in learn else pytest.raises(UserError, match="where tasks end")
        with refused:
            Learner(config, backbone)
