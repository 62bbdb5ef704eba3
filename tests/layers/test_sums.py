"""Sums that images only add to, and what a method counts by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from promptcl.layers import Statistics, Sum, sums_of


def test_a_sum_adds_and_grows() -> None:
    total = Sum(2, 3)
    total.add(torch.ones(2, 3))
    total.add_rows(torch.tensor([1, 1, 0]), torch.arange(9).view(3, 3))
    assert total.value.tolist() == [[7, 8, 9], [4, 6, 8]]
    assert total.value.dtype == torch.float64
    total.grow(1)
    total.add_rows(torch.tensor([2]), torch.full((1, 3), 0.5))
    assert total.value.tolist() == [[7, 8, 9], [4, 6, 8], [0.5, 0.5, 0.5]]


def test_a_sum_is_exact_in_its_own_precision() -> None:
    total, counts = Sum(), Sum(2, dtype=torch.long)
    for _ in range(1000):
        total.add(torch.tensor(0.1, dtype=torch.float32))
        counts.add_rows(torch.tensor([0, 1, 0]), torch.ones(3))
    assert total.value.item() == pytest.approx(1000 * float(torch.tensor(0.1)), abs=1e-9)
    assert counts.value.tolist() == [2000, 1000]


def test_a_sum_is_part_of_the_state_unless_it_is_said() -> None:
    model = nn.Module()
    model.kept, model.passing = Sum(2), Sum(3, persistent=False)
    model.inner = nn.Sequential(nn.Linear(1, 1), Sum(4))
    assert {name for name in model.state_dict() if "value" in name} == {"kept.value", "inner.1.value"}
    assert sorted(len(value) for value in sums_of(model)) == [2, 3, 4]
    model.kept.value += 1  # what is given is the sum itself
    assert any(bool(value.any()) for value in sums_of(model))


def test_counts_grow_with_what_is_counted() -> None:
    said = Statistics()
    said.count("prompts", torch.tensor([[0, 1], [1, 1]]), 2)
    said.count("prompts", torch.tensor([3, 0]), 4)
    said.count("prompts", torch.tensor([2]), 3)  # fewer than were known already
    said.count("other", torch.tensor([], dtype=torch.long), 2)
    assert list(said) == ["prompts", "other"]
    assert said.take() == {"prompts": [2, 3, 1, 1], "other": [0, 0]}
    assert not list(said)
    assert said.take() == {}


def test_a_mean_is_over_all_values_and_holds_no_gradient() -> None:
    said, values = Statistics(), torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    said.mean("cosine", values)
    said.mean("cosine", torch.tensor(8.0))
    assert not any(value.requires_grad for value in said.tensors().values())
    assert said.take() == {"cosine": 4.0}
    said.mean("cosine", torch.zeros(0))
    assert said.take() == {"cosine": 0.0}


def test_restore_goes_on_from_tensors() -> None:
    said, again = Statistics(), Statistics()
    said.count("a.b", torch.tensor([1]), 2)
    said.mean("a.b", torch.tensor([4.0]))
    again.count("gone", torch.tensor([0]), 1)
    again.restore({name: value.clone() for name, value in said.tensors().items()})
    again.count("a.b", torch.tensor([2, 1]), 3)
    again.mean("a.b", torch.tensor([0.0]))
    assert set(again.tensors()) == {"count.a.b", "mean.a.b"}
    assert again.counts["a.b"].tolist() == [0, 2, 1]
    assert again.means["a.b"].tolist() == [4.0, 2.0]
    assert said.counts["a.b"].tolist() == [0, 1]


def test_fill_gives_every_process_the_same_names_and_shapes() -> None:
    one, two = Statistics(), Statistics()
    one.count("prompts", torch.tensor([1]), 2)
    one.mean("cosine", torch.tensor([0.5, 0.7]))
    two.count("prompts", torch.tensor([3]), 4)
    two.count("alone", torch.tensor([0]), 1)
    shapes: dict[str, list[int]] = {}
    for said in (one, two):
        for name, value in said.tensors().items():
            shapes[name] = max(shapes.get(name, []), list(value.shape))
    for said in (one, two):
        said.fill(shapes, torch.device("cpu"))
    assert list(one.tensors()) == list(two.tensors())
    added = Statistics()
    added.restore({name: value + two.tensors()[name] for name, value in one.tensors().items()})
    assert added.take() == {"prompts": [0, 1, 0, 1], "alone": [1], "cosine": pytest.approx(0.6)}
    assert two.means["cosine"].tolist() == [0.0, 0.0]


def test_nothing_is_counted_in_a_program_that_is_exported() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stats = Statistics()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.stats.count("prompts", x.argmax(1), 3)
            self.stats.mean("cosine", x)
            return x + 1

    module = Counts()
    program = torch.export.export(module, (torch.rand(2, 3),))
    assert not list(module.stats)
    assert program.module()(torch.zeros(2, 3)).tolist() == [[1.0] * 3] * 2
    module(torch.zeros(2, 3))
    assert set(module.stats) == {"prompts", "cosine"}
