"""Springs (EWC): Fisher information image by image, energy, several springs in one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from promptcl.layers.springs import PerNumber, Springs, gradient_squares


def linear(weight_KD: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x_1D: x_1D @ weight_KD.T


def test_fisher_information_of_two_classes_by_hand() -> None:
    """At zero weights and an input of 2 the gradients of log p are (1, -1) and (-1, 1)."""
    weight_KD = torch.zeros(2, 1, requires_grad=True)
    images = torch.full((2, 1), 2.0)
    (squares,) = gradient_squares([weight_KD], linear(weight_KD), images, torch.tensor([0, 1]))
    assert (squares / 2).tolist() == [[1.0], [1.0]]  # the square of the mean gradient would be 0
    assert weight_KD.grad is None
    for seed in range(3):
        at = torch.Generator().manual_seed(seed)
        (drawn,) = gradient_squares([weight_KD], linear(weight_KD), images[:1], torch.tensor([0]), None, at)
        assert drawn.tolist() == [[1.0], [1.0]]


def test_labels_are_drawn_as_the_model_answers() -> None:
    weight_KD, at = torch.tensor([[0.0], [1.0]], requires_grad=True), torch.Generator().manual_seed(0)
    images = torch.ones(2000, 1)
    (squares,) = gradient_squares([weight_KD], linear(weight_KD), images, torch.zeros(2000).long(), None, at)
    p = torch.tensor([0.0, 1.0]).softmax(0)
    assert squares[0].item() / 2000 == pytest.approx((p[0] * p[1]).item(), rel=0.1)  # sum over y of p(y) (y - p)^2


def test_the_mask_of_training_is_that_of_the_gradients() -> None:
    weight_KD = torch.zeros(3, 1, requires_grad=True)
    allowed_NK = torch.tensor([[True, True, False]])
    labels_N = torch.tensor([0])
    (squares,) = gradient_squares([weight_KD], linear(weight_KD), torch.full((1, 1), 2.0), labels_N, allowed_NK)
    assert squares.tolist() == [[1.0], [1.0], [0.0]]


def test_energy_by_hand_and_rows_that_grow() -> None:
    p = torch.zeros(1)
    springs = Springs([p], keep_rest=True)
    springs.stiffness.add([torch.tensor([2.0])], 1.0)
    assert 3 * springs.energy([torch.tensor([0.5])]).item() == pytest.approx(0.75)
    springs.grow([torch.tensor([0.5, 7.0])])
    assert 3 * springs.energy([torch.tensor([0.5, 9.0])]).item() == pytest.approx(0.75)
    assert [value.tolist() for value in springs.rest] == [[0.0, 7.0]]


def test_several_springs_are_one() -> None:
    """The pull of a sum of springs, one a task, against the one that is saved."""
    generator = torch.Generator().manual_seed(0)
    drawn = [(torch.rand(4, generator=generator), torch.randn(4, generator=generator)) for _ in range(3)]
    springs = Springs([torch.zeros(4)], keep_rest=True)
    for stiff, rest in drawn:
        before = [value.clone() for value in springs.stiffness.values]
        springs.stiffness.add([stiff], 1.0)
        springs.join(before, [rest])
    p = torch.randn(4, generator=generator, requires_grad=True)
    springs.energy([p]).backward()
    wanted = sum(stiff * (p.detach() - rest) for stiff, rest in drawn)
    torch.testing.assert_close(p.grad, wanted)


def test_a_moving_average() -> None:
    average = PerNumber([torch.zeros(1)])
    for part in (1.0, 3.0):
        average.average([torch.tensor([part])], 0.9)
    assert average.values[0].item() == pytest.approx(0.9 * 3 + 0.1 * 0.9)
