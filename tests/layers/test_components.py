"""Components that grow task by task, and stay orthonormal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from promptcl.layers.components import Components, orthonormal


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def grown(*counts: int, **settings: Any) -> Components:
    made = Components(**{"layers": (0, 2), "length": 2, "width": 16, "attention": True, **settings})
    for count in counts:
        made.grow(count, drawn())
    return made


@pytest.mark.parametrize("old", [0, 1, 20])
def test_new_rows_are_orthonormal_whatever_the_old_ones_are(old: int) -> None:
    rows = torch.randn(old, 64, generator=drawn()) * torch.linspace(1, 100, old)[:, None] + 1  # oblique, all lengths
    new = orthonormal(10, rows, drawn().manual_seed(1))
    torch.testing.assert_close(new @ new.T, torch.eye(10), atol=1e-5, rtol=0)
    assert (F.normalize(rows) @ new.T).abs().sum() <= 1e-5 * max(1, old)
    assert torch.equal(new, orthonormal(10, rows, drawn().manual_seed(1)))
    # One after the other, as public code subtracts them, leaves much more.
    naive = torch.randn(64, generator=drawn())
    for row in F.normalize(rows):
        naive = naive - (naive @ row) * row
    assert old < 2 or (F.normalize(rows) @ F.normalize(naive, dim=0)).abs().max() > 1e-2


def test_the_present_is_trained_and_the_past_is_not() -> None:
    made = grown(3, 2)
    assert made.all("prompt").shape == (2, 5, 64)
    assert made.obliqueness().item() == pytest.approx(0, abs=1e-9)
    assert {name for name, _ in made.named_parameters()} == {"present.prompt", "present.key", "present.attention"}
    assert all(p.shape[:2] == (2, 2) for p in made.parameters())
    assert sum(value.numel() for value in made.state_dict().values()) == 2 * 5 * (64 + 16 + 16)


def test_no_more_rows_than_directions() -> None:
    made = grown(10, 10, 10)
    assert made.all("key").shape == (2, 16, 16)
    assert made.present["key"].shape == (2, 0, 16)


def test_weights_are_cosines_of_key_and_attended_query() -> None:
    made, query = grown(5), torch.randn(7, 16, generator=drawn())
    direct = F.cosine_similarity(query[:, None] * made.all("attention")[1], made.all("key")[1], dim=2)
    torch.testing.assert_close(made.weights(1, query), direct, atol=1e-5, rtol=0)
    torch.testing.assert_close(made.weights(1, 9 * query), direct, atol=1e-5, rtol=0)
    with torch.no_grad():
        made.present["key"] *= 3
        made.present["attention"] *= 5
    torch.testing.assert_close(made.weights(1, query), direct, atol=1e-5, rtol=0)
    plain = grown(5, attention=False)
    torch.testing.assert_close(plain.weights(0, query), F.cosine_similarity(query[:, None], plain.all("key")[0], dim=2))


def test_a_query_along_a_key_takes_its_prompt() -> None:
    made, unit = grown(4), torch.eye(16)[:4]
    with torch.no_grad():
        made.present["attention"].fill_(1)
        made.present["key"].copy_(unit.expand(2, 4, 16))
    prefix = made.prefix(1, unit)
    assert prefix.layer == 2
    torch.testing.assert_close(torch.stack([prefix.keys_BLD, prefix.values_BLD], 1).flatten(1), made.all("prompt")[1])
