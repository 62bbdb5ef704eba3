"""The checks that any method has to pass, one function each; each returns `passed`, or why it was refused."""

from __future__ import annotations

import contextlib
import os
import random
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from promptcl.errors import UserError
from promptcl.learner import Learner
from promptcl.learner.export import Program, trace
from promptcl.methods._base import load_method
from promptcl.runtime import processes
from promptcl.testing.bench import Bench, Count, Stop, StopAt
from promptcl.testing.documented import undocumented


def _same_state(a: Learner, b: Learner) -> bool:
    ours, theirs = a.method.state_dict(), b.method.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _documented(bench: Bench) -> str:
    model = load_method(bench.name)
    said = sys.modules[model.__module__].__doc__ or model.__doc__ or ""
    assert said.strip(), "the method's module needs a docstring that says what it is and where it is from"
    source = re.search(r"arXiv|et al|\(ours|baseline|https?://|\d{4}", said)
    assert source, f"the docstring {said.splitlines()[0]!r} names no source (a paper, or: ours)"
    missing = undocumented(model.Options)
    assert not missing, f"the option {missing[0]} needs a docstring, in the line under it, that says what it does"
    return "passed"


def _global_random_state() -> tuple[bytes, str]:
    return torch.get_rng_state().numpy().tobytes(), repr((random.getstate(), np.random.get_state()))  # noqa: NPY002


def _better_than_chance(bench: Bench) -> str:
    vit = bench.able_backbone
    before, state = [bench.train[0].image(i).clone() for i in range(3)], _global_random_state()
    kept = {name: value.clone() for name, value in vit.state_dict().items()}
    learner, said = bench.able_story
    for known, (test, logits_NK) in enumerate(zip(bench.test, said, strict=True), 1):
        assert logits_NK.shape == (len(test), 2 * known), "logits are [B, K], K the classes so far"
        assert not logits_NK.isnan().any(), "logits are numbers, or -inf for a class that cannot be"
        labels_N = learner.labels(test)
        right = logits_NK[:, labels_N.unique()].argmax(1) == labels_N - 2 * known + 2
        accuracy = right.float().mean().item()
        assert accuracy > 0.5, f"{accuracy:.0%} of two digits right just after they were learned: no better than chance"
    assert state == _global_random_state(), "the global random state was used; take task or batch.generator"
    assert all(torch.equal(bench.train[0].image(i), one) for i, one in enumerate(before)), "input images were changed"
    now = vit.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in kept.items()), "the frozen ViT was changed"
    assert all(p.grad is None for p in vit.parameters()), "the frozen ViT was given a gradient"
    return "passed"


def _same_seed_same_bits(bench: Bench) -> str:
    one, two = bench.whole, bench.learned()
    assert _same_state(one, two), "the same seed and images gave another state"
    assert torch.equal(bench.answers(one), bench.answers(two)), "the same state gave other answers"
    other = bench.learned(seed=7)
    if any(p.requires_grad for p in one.method.parameters()):
        assert not _same_state(one, other), "another seed gave the same state, though something is trained"
    return "passed"


def _grow_is_repeated_at_load(bench: Bench) -> str:
    learner = bench.whole
    learner.save(bench.folder / "whole")
    again = bench.load(bench.folder / "whole")
    assert _same_state(learner, again), "a learner that was saved and loaded has another state"
    same = torch.equal(bench.answers(learner), bench.answers(again))
    assert same, (
        "a learner that was saved and loaded answers otherwise: state_dict() lacks what the answers depend on, or a "
        "feature that `once` keeps depends on what it was not told of"
    )
    return "passed"


def _interrupted_anywhere(bench: Bench) -> str:
    store, steps = bench.folder / "interrupted", Count()
    start = bench.learned(bench.train[0])
    start.save(store)
    start.learn(bench.train[1], progress=steps)
    for event in range(steps.events):
        learner = bench.load(store)
        with contextlib.suppress(Stop):
            learner.learn(bench.train[1], checkpoint=store, progress=StopAt(event))
        learner = bench.load(store)
        learner.learn(bench.train[1], checkpoint=store)
        where = f"interrupted at event {event} of {steps.events} (stages and steps) and continued, it"
        assert _same_state(start, learner), f"{where} has another state"
        assert torch.equal(bench.answers(start), bench.answers(learner)), f"{where} answers otherwise"
    return "passed"


_TOGETHER: dict[str, Any] = {"train": {"optimizer": "sgd", "lr": 0.01}}


def _in_other_processes(bench: Bench) -> str:
    if not hasattr(os, "fork"):
        return "refused: this system starts no process as a copy of another, which this check needs"
    bench.whole.save(bench.folder / "whole")
    torch.save(bench.answers(bench.whole), bench.folder / "whole.pt")
    torch.save(bench.answers(bench.learned(**_TOGETHER)), bench.folder / "together.pt")
    bench.elsewhere(2)
    return "passed"


def elsewhere(bench: Bench) -> None:
    """In each of several new processes: load what was saved and compare; then learn together and compare."""
    loaded = bench.answers(bench.load(bench.folder / "whole"))
    same = torch.equal(torch.load(bench.folder / "whole.pt"), loaded)
    assert same, "loaded in another process it answers otherwise: something is kept outside of state_dict()"
    with processes.group():
        one, two = torch.load(bench.folder / "together.pt"), bench.answers(bench.learned(**_TOGETHER))
    finite = one.isfinite()
    assert torch.equal(finite, two.isfinite()), "two processes do not rule out the classes that one does"
    gap, size = (one - two)[finite].abs().max().item(), one[finite].abs().max().item()
    assert gap <= 1e-3 * size + 1e-6, (
        f"two processes answer otherwise than one: logits differ by {gap:.2g} of {size:.2g}; what is gathered from "
        "batches belongs into a Sum"
    )


def _neighbours_do_not_matter(bench: Bench) -> str:
    learner, _ = bench.able_story
    if learner.method.together > 1:
        return "refused: `together` says that answers depend on their neighbours"
    whole, test = bench.answers(learner, bench.test[1]), bench.test[1]
    for rows in (list(range(len(test)))[::-1], [0], [3, 3, 5]):
        part = bench.answers(learner, test.select(rows))
        same = torch.isclose(whole[rows], part, rtol=1e-3, atol=1e-4)
        assert same.all(), f"images {rows[:3]} answer otherwise among other neighbours; say so with `together`"
    return "passed"


def _small_tasks(bench: Bench) -> str:
    known, new = bench.train
    bench.learned(known, known).evaluate(bench.test[0])  # known classes again, no new one
    learner = bench.learned(known, new.of_classes("6").select([0]))  # one image of one class
    assert len(learner.classes) == 3, "a task of one class grows by one class"
    alone = bench.learned(known.of_classes("0"))
    answers = {one.label for one in alone.predict(bench.test[1], threshold=0)}
    assert answers == {"0"}, "a label came out that was never learned"
    return "passed"


def _memory(bench: Bench) -> str:
    learner = bench.learner(memory={"per_class": 2})
    idle = [sentence for images in bench.train for sentence in learner.learn(images).warnings]
    bench.answers(learner)
    held = bench.learned(train={"holdout": 0.2})
    assert held.calibration.images, "held-out images could not be measured"
    return "passed: it never replays images" if any("idle" in one for one in idle) else "passed"


def _no_boundaries(bench: Bench) -> str:
    try:
        learner = bench.learned(scenario="gaussian")
    except UserError as error:
        if "where tasks end" not in str(error):
            raise AssertionError(f"a stream without boundaries is refused for another reason: {error}") from error
        return f"refused: {error}"
    learner.save(bench.folder / "stream")
    again = bench.load(bench.folder / "stream")
    for one in (learner, again):
        one.learn(bench.train[0])
    assert _same_state(learner, again), "a learner that was saved in the middle of a stream goes on otherwise"
    return "passed"


def _exported(bench: Bench) -> str:
    learner, side = bench.whole, bench.backbone.image_size
    images_BCHW = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        traced = trace(learner)  # in memory: to write and read it takes as long again
    except UserError as error:
        return f"refused: {error}"
    with torch.no_grad():
        wanted = Program(learner).eval()(images_BCHW)
        found = traced.module()(images_BCHW)
    same = all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(wanted, found, strict=True))
    assert same, "the exported program answers otherwise"
    return "passed"


def _mended(bench: Bench) -> str:
    first, second = bench.train
    gone, left = second.classes[0], second.of_classes(second.classes[1:])
    learner = bench.learned()
    if not learner.method.mendable:
        try:
            learner.forget(gone)
        except UserError as error:
            return f"refused: {error}"
        raise AssertionError("it is not `mendable`, but its learner forgets a class")
    learner.forget(gone)
    _answers_like(bench, learner, bench.learned(first, left), "a class was forgotten")
    learner.undo()
    _answers_like(bench, learner, bench.learned(first), "the last task was undone")
    return "passed"


def _answers_like(bench: Bench, learner: Learner, never: Learner, what: str) -> None:
    learner.save(bench.folder / "mended")
    for one in (learner, bench.load(bench.folder / "mended")):
        same = torch.allclose(bench.answers(never), bench.answers(one), rtol=1e-3, atol=1e-4)
        assert same, f"after {what} it answers otherwise than one that never learned that"


CHECKS: tuple[Callable[[Bench], str], ...] = (
    *(_documented, _better_than_chance, _same_seed_same_bits, _small_tasks, _neighbours_do_not_matter),
    *(
        _grow_is_repeated_at_load,
        _interrupted_anywhere,
        _mended,
        _memory,
        _no_boundaries,
        _exported,
        _in_other_processes,
    ),
)
