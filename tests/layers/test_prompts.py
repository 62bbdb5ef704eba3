from __future__ import annotations

import pytest
import torch

from promptcl.layers.prompts import PromptPool, cosine, initialise, top_n, vote


@pytest.mark.parametrize(("pool", "length", "count"), [(10, 5, 46_080), (20, 5, 92_160), (10, 10, 84_480)])
def test_parameter_counts_quoted_in_the_paper(pool: int, length: int, count: int) -> None:
    module = PromptPool(torch.zeros(pool, length, 768), torch.zeros(pool, 768))
    assert sum(p.numel() for p in module.parameters()) == count


def test_vote_worked_examples() -> None:
    assert vote(torch.tensor([[2, 0], [0, 2], [3, 1]]), 4, 16).tolist() == [[0, 2]] * 3
    assert vote(torch.tensor([[1, 3], [2, 3]]), 4, 16).tolist() == [[3, 1]] * 2


def test_vote_groups_are_independent() -> None:
    index = torch.tensor([[0, 1], [0, 1], [2, 3], [2, 3], [1, 3]])
    assert vote(index, 4, 2).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [1, 3]]


def test_ties_go_to_the_lower_id() -> None:
    assert top_n(torch.tensor([[0.5, 0.9, 0.5, 0.9]]), 3).tolist() == [[1, 3, 0]]
    assert top_n(torch.zeros(1, 64), 5).tolist() == [[0, 1, 2, 3, 4]]


def test_cosine_matches_torch_and_survives_zero() -> None:
    a, b = torch.randn(3, 8), torch.randn(5, 8)
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(cosine(a, b), expected)
    assert cosine(torch.zeros(1, 8), b).tolist() == [[0.0] * 5]


def test_initialisers() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = initialise((10_000,), "uniform", 0.01, generator)
    assert 0 <= uniform.min() < uniform.max() < 0.01
    symmetric = initialise((10_000,), "symmetric", 1.0, generator)
    assert symmetric.min() < -0.99
    assert symmetric.max() > 0.99
    assert initialise((10_000,), "normal", 0.02, generator).std().item() == pytest.approx(0.02, rel=0.05)


def test_take_keeps_order_and_gives_dense_gradient() -> None:
    pool = PromptPool(torch.arange(24.0).view(4, 2, 3), torch.ones(4, 3))
    tokens = pool.take(torch.tensor([[2, 0]]))
    assert torch.equal(tokens[0], torch.cat([pool.prompts_MLD[2], pool.prompts_MLD[0]]))
    tokens.sum().backward()
    assert pool.prompts_MLD.grad is not None
    assert pool.prompts_MLD.grad.sum((1, 2)).tolist() == [6, 0, 6, 0]
