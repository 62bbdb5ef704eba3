"""Ridge regression: by hand, in any order, from few images or many, images left out, a penalty of its own choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from promptcl.layers.ridge import Penalty, RidgeHead

SETTINGS: list[dict[str, Any]] = [
    {"strength": 0.3, "penalty": "mean"},
    {"strength": 0.3, "penalty": "each"},
    {"strength": 3.0, "penalty": "absolute"},
    {"strength": 3.0, "penalty": "absolute", "centred": False},
    {},
]


def points(classes: int, per_class: int, width: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features [N, D] around a random mean of each class, float64, and class ids [N], class after class."""
    generator = torch.Generator().manual_seed(classes + width)
    means_KD = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels_N = torch.arange(classes).repeat_interleave(per_class)
    noise_ND = torch.randn(len(labels_N), width, generator=generator, dtype=torch.float64)
    return means_KD[labels_N] + noise * noise_ND + 0.5, labels_N


def from_sums(x_ND: Tensor, labels_N: Tensor, balance: bool = True, **settings: Any) -> RidgeHead:
    head = RidgeHead(x_ND.shape[1], **settings)
    head.grow(int(labels_N.max()) + 1)
    head.add(x_ND, labels_N)
    head.solve(balance)
    return head


def from_rows(x_ND: Tensor, labels_N: Tensor, balance: bool = True, classes: int = 0, **settings: Any) -> RidgeHead:
    head = RidgeHead(x_ND.shape[1], sums=False, **settings)
    head.grow(classes or int(labels_N.max()) + 1)
    head.fit(x_ND, labels_N, balance)
    return head


@pytest.mark.parametrize("make", [from_sums, from_rows])
def test_three_images_by_hand(make: Any) -> None:
    """X^T X + I = [[3, 1], [1, 3]], whose inverse is [[3, -1], [-1, 3]] / 8; X^T Y = [[2, 0], [1, 1]]."""
    x_ND, labels_N = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([0, 1, 0])
    head = make(x_ND, labels_N, balance=False, strength=1.0, penalty="absolute", centred=False)
    wanted_DK = torch.tensor([[0.625, -0.125], [0.125, 0.375]], dtype=torch.float64)
    torch.testing.assert_close(head.weight_KD.T, wanted_DK, rtol=1e-12, atol=1e-12)
    assert head.bias_K.tolist() == [0, 0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("balance", [False, True])
def test_any_order_and_any_split_give_the_same(settings: dict[str, Any], balance: bool) -> None:
    x_ND, labels_N = points(5, 12, 8)
    x_ND, labels_N = x_ND[:-5], labels_N[:-5]  # the classes have 12, 12, 12, 12 and 7 images
    once = from_sums(x_ND, labels_N, balance, **settings)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        order, name_K = torch.randperm(len(x_ND), generator=generator), torch.randperm(5, generator=generator)
        cuts = torch.randint(1, len(x_ND), (4,), generator=generator).sort().values.tolist()
        parts = RidgeHead(8, **settings)
        parts.grow(5)
        for rows in torch.tensor_split(order, cuts):
            parts.add(x_ND[rows], name_K[labels_N[rows]])
            parts.solve(balance)  # in between, as after each task
        whole = from_rows(x_ND[order], name_K[labels_N[order]], balance, **settings)
        for head in (parts, whole):
            torch.testing.assert_close(head.weight_KD[name_K], once.weight_KD, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(head.bias_K[name_K], once.bias_K, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("per_class", [2, 5, 30])
def test_products_of_images_say_what_sums_say(settings: dict[str, Any], per_class: int) -> None:
    """With 40 features: 6 and 15 images are fewer, so that these products are taken, 90 are more."""
    x_ND, labels_N = points(3, per_class, 40)
    sums, rows = from_sums(x_ND, labels_N, **settings), from_rows(x_ND, labels_N, **settings)
    torch.testing.assert_close(rows.weight_KD, sums.weight_KD, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rows.bias_K, sums.bias_K, rtol=1e-9, atol=1e-9)
    assert rows.scatter_DD.value.numel() == 0  # and nothing is kept


def test_recursive_least_squares_arrive_at_the_same() -> None:
    """ACIL: R <- R - R X^T (I + X R X^T)^-1 X R, W <- W + R X^T (Y - X W), batch after batch, from R = I / gamma."""
    x_ND, labels_N = points(6, 15, 8)
    y_NK = torch.nn.functional.one_hot(labels_N).double()
    inverse_DD, weight_DK = torch.eye(8, dtype=torch.float64) / 0.1, torch.zeros(8, 6, dtype=torch.float64)
    for x_BD, y_BK in zip(x_ND.split(7), y_NK.split(7), strict=True):
        gain_DB = inverse_DD @ x_BD.T
        inner_BB = torch.eye(len(x_BD), dtype=torch.float64) + x_BD @ gain_DB
        inverse_DD = inverse_DD - gain_DB @ torch.linalg.solve(inner_BB, gain_DB.T)
        weight_DK = weight_DK + inverse_DD @ x_BD.T @ (y_BK - x_BD @ weight_DK)
    head = from_sums(x_ND, labels_N, False, strength=0.1, penalty="absolute", centred=False)
    torch.testing.assert_close(head.weight_KD.T, weight_DK, rtol=1e-9, atol=1e-9)


def test_new_classes_leave_the_sums_of_old_ones() -> None:
    x_ND, labels_N = points(4, 6, 5)
    head = RidgeHead(5)
    head.grow(2)
    head.add(x_ND[:12], labels_N[:12])
    sums_KD, counts_K = head.sum_KD.value.clone(), head.count_K.value.clone()
    head.grow(2)
    head.add(x_ND[12:], labels_N[12:])
    assert torch.equal(head.sum_KD.value[:2], sums_KD)
    assert torch.equal(head.count_K.value, torch.cat([counts_K, counts_K]))


def brute_force(x_ND: Tensor, labels_N: Tensor, balance: bool, **settings: Any) -> Tensor:
    """Logits [N, K] of each image by a solution of all others."""
    others = ~torch.eye(len(x_ND), dtype=torch.bool)
    heads = [
        from_rows(x_ND[kept_N], labels_N[kept_N], balance, int(labels_N.max()) + 1, **settings) for kept_N in others
    ]
    return torch.stack([x_D @ head.weight_KD.T + head.bias_K for x_D, head in zip(x_ND, heads, strict=True)])


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("width", [6, 60])
def test_images_left_out_are_answered_as_if_never_seen(centred: bool, width: int) -> None:
    """With fewer features than images, and with more."""
    x_ND, labels_N = points(4, 9, width)
    x_ND, labels_N = x_ND[3:], labels_N[3:]
    settings: dict[str, Any] = {"strength": 2.0, "penalty": "absolute", "centred": centred}
    found_NK = from_rows(x_ND, labels_N, False, **settings).out_of_fold(x_ND, labels_N)
    torch.testing.assert_close(found_NK, brute_force(x_ND, labels_N, False, **settings), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("per_class", [[5] * 4, [20] * 4, [40] * 4, [40, 10, 40, 20]], ids=str)
@pytest.mark.parametrize("centred", [True, False])
def test_images_left_out_where_classes_count_alike(per_class: list[int], centred: bool) -> None:
    """As the classes weigh among all images, by c = N / (K m) for one of m images.

    Exactly where nothing is centred. Else nearly: the middle of the class means, from which answers are counted, is
    taken as it is with the image. Leaving one out moves that middle against the mean of all images by (mean of its
    class - mean) / N; one-hot labels differ by 1 along it, so logits by 1 / N, and what is the same for all classes by
    about as much again. Without it the weights of its class are those of m - 1 images, its logits m / (m - 1) times.
    """
    x_ND, labels_N = points(4, 40, 6)
    kept_N = torch.arange(len(x_ND)) % 40 < torch.tensor(per_class)[labels_N]
    x_ND, labels_N = x_ND[kept_N], labels_N[kept_N]
    settings: dict[str, Any] = {"strength": 2.0, "penalty": "absolute", "centred": centred}
    found_NK = from_rows(x_ND, labels_N, True, **settings).out_of_fold(x_ND, labels_N, True)
    if not centred:
        weight_K = len(x_ND) / 4 / torch.tensor(per_class)
        raw_NK = brute_force(x_ND, labels_N, False, **settings)
        torch.testing.assert_close(found_NK, weight_K * raw_NK, rtol=1e-8, atol=1e-8)
    own_NK = torch.nn.functional.one_hot(labels_N) / torch.tensor(per_class)
    gap_NK = found_NK - brute_force(x_ND, labels_N, True, **settings) * (1 - own_NK)
    assert gap_NK.abs().max() < 1 / min(per_class)


def test_what_is_left_out_is_never_more_familiar_than_what_is_learned() -> None:
    """Three clear classes of eight images, more features than images: what was learned is fitted without error."""
    x_ND, labels_N = points(3, 8, 200)
    x_ND = 0.2 * x_ND + 5 * torch.nn.functional.one_hot(labels_N, 200)
    head = from_rows(x_ND, labels_N, True)
    own_N = (x_ND @ head.weight_KD.T + head.bias_K).gather(1, labels_N[:, None])
    left_N = head.out_of_fold(x_ND, labels_N, True).gather(1, labels_N[:, None])
    assert (left_N < own_N).all()


def test_few_noisy_images_get_a_larger_penalty_than_many() -> None:
    """As a share of the mean variance, in which the number of images cancels."""
    shares = []
    for per_class in (5, 500):
        x_ND, labels_N = points(4, per_class, 30, noise=2.0)
        head = from_rows(x_ND, labels_N)
        fit = head._fit_of(x_ND, labels_N)
        shares.append(fit.automatic() / fit.values_R.sum().item())
    assert shares[0] > 3 * shares[1]


def test_the_chosen_penalty_is_as_good_on_other_images_as_the_best() -> None:
    """Of fixed ones, from far too small to far too large."""
    x_ND, labels_N = points(6, 200, 40, noise=3.0)
    first_N = torch.arange(len(x_ND)) % 200 < 8

    def right(head: RidgeHead) -> float:
        logits_NK = head(x_ND[~first_N])
        return float((logits_NK.argmax(1) == labels_N[~first_N]).double().mean())

    fixed = [right(from_rows(x_ND[first_N], labels_N[first_N], strength=10.0**e)) for e in range(-6, 5)]
    chosen = right(from_rows(x_ND[first_N], labels_N[first_N]))
    assert chosen > max(fixed) - 0.02
    assert chosen > min(fixed) + 0.05


ODD: dict[str, tuple[Tensor, list[int]]] = {
    "one image a class": (torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), [0, 1, 2, 3]),
    "one class": (torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), [0] * 5),
    "one image": (torch.ones(1, 6), [0]),
    "one image of the second class": (torch.ones(1, 6), [1]),
    "all alike": (torch.ones(8, 6), [0, 0, 0, 0, 1, 1, 1, 1]),
    "all zero": (torch.zeros(4, 6), [0, 0, 1, 1]),
    "a feature that never varies": (torch.eye(6)[[0, 0, 1, 1]] + torch.eye(6)[5], [0, 0, 1, 1]),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("penalty", ["mean", "each", "absolute"])
@pytest.mark.parametrize("strength", [None, 0.5])
@pytest.mark.parametrize("centred", [True, False])
def test_odd_images_give_finite_weights(what: str, penalty: Penalty, strength: float | None, centred: bool) -> None:
    x_ND, labels = ODD[what]
    labels_N = torch.tensor(labels)
    settings: dict[str, Any] = {"strength": strength, "penalty": penalty, "centred": centred}
    for balance in (True, False):
        heads = [make(x_ND, labels_N, balance, **settings) for make in (from_sums, from_rows)]
        for head in heads:
            assert head.weight_KD.isfinite().all()
            assert head.bias_K.isfinite().all()
        torch.testing.assert_close(heads[0].weight_KD, heads[1].weight_KD, rtol=1e-6, atol=1e-9)
        if len(x_ND) > 1:
            assert heads[1].out_of_fold(x_ND, labels_N, balance).isfinite().all()


def test_unequal_classes_that_count_alike_get_a_larger_penalty() -> None:
    """Mean number / harmonic mean times the choice, at most three times; of two classes its fourth power."""
    for classes, kept, times in (
        (3, 40, 1.0),
        (3, 10, 30 * (2 / 40 + 1 / 10) / 3),
        (3, 1, 3.0),  # which would be 9.9
        (2, 40, 1.0),
        (2, 10, (25 * (1 / 40 + 1 / 10) / 2) ** 4),
    ):
        x_ND, labels_N = points(classes, 40, 6)
        kept_N = (labels_N > 0) | ((labels_N == 0).cumsum(0) <= kept)
        head = from_rows(x_ND[kept_N], labels_N[kept_N], True, strength=None)
        fit = head._fit_of(x_ND[kept_N].double(), labels_N[kept_N])
        assert fit.penalty(None, "mean", balance=False) == fit.automatic()
        assert fit.penalty(None, "mean", balance=True) == pytest.approx(times * fit.automatic())
