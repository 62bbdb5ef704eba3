"""Distillation, supervised contrast and relations: against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from promptcl.layers.losses import distillation, relation_distillation, supervised_contrast


def test_distillation_has_the_form_of_a_cross_entropy_and_no_square_of_the_temperature() -> None:
    old_BJ, new_BJ = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
    assert distillation(old_BJ, new_BJ, 2.0).item() == pytest.approx(0.693147, abs=1e-6)
    entropy = distillation(old_BJ, old_BJ, 2.0)
    assert (distillation(old_BJ, new_BJ, 2.0) - entropy).item() == pytest.approx(0.110944, abs=1e-6)


def test_a_model_that_is_as_it_was_is_not_moved() -> None:
    old_BJ = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    new_BK = torch.cat([old_BJ, torch.ones(3, 2)], 1).requires_grad_()
    distillation(old_BJ, new_BK[:, :4], 2.0).backward()
    assert new_BK.grad is not None
    assert new_BK.grad.abs().max() < 1e-6
    assert (new_BK.grad[:, 4:] == 0).all()


def test_two_identical_views_of_two_classes() -> None:
    """Orthogonal embeddings at temperature 0.5: log(1 + 2 e^-2) for every row."""
    unit_BD, labels_B = torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1])
    everyone = torch.ones(4, dtype=torch.bool)
    assert supervised_contrast(unit_BD, labels_B, everyone, 0.5).item() == pytest.approx(0.239545, abs=1e-6)
    new = labels_B == 1  # the other class comes from the memory: a mean over the anchors, not over all rows
    assert supervised_contrast(unit_BD, labels_B, new, 0.5).item() == pytest.approx(0.239545, abs=1e-6)
    assert supervised_contrast(unit_BD, labels_B, ~everyone, 0.5).item() == 0


def test_an_anchor_is_the_mean_over_all_others_of_its_class() -> None:
    generator = torch.Generator().manual_seed(1)
    unit_BD, labels_B = F.normalize(torch.randn(6, 3, generator=generator)), torch.tensor([0, 0, 0, 1, 1, 2])
    whole = 0.0
    for i in range(5):  # the last row has no other of its class, and adds 0
        others = [j for j in range(6) if j != i]
        log = (unit_BD[i] @ unit_BD[others].T / 0.3).log_softmax(0)
        same = [place for place, j in enumerate(others) if labels_B[j] == labels_B[i]]
        whole -= log[same].mean().item()
    found = supervised_contrast(unit_BD, labels_B, torch.ones(6, dtype=torch.bool), 0.3)
    assert found.item() == pytest.approx(whole / 6, rel=1e-5)


def test_relations_of_three_directions() -> None:
    """At 0, 45 and 90 degrees; not 0 though nothing has changed, since the two temperatures differ."""
    angle_B = torch.tensor([0.0, 45.0, 90.0]).deg2rad()
    unit_BD = torch.stack([angle_B.cos(), angle_B.sin()], 1)
    assert relation_distillation(unit_BD, unit_BD, 0.01, 0.2).item() == pytest.approx(0.250200, abs=1e-6)
