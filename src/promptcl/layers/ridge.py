"""Ridge regression onto one-hot labels, from running sums or from the features themselves, with a penalty of its own.

D width, K classes so far, N images, R principal directions (at most D, and fewer than N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from promptcl.layers.sums import Sum, SymmetricSum

Penalty = Literal["mean", "each", "absolute"]
"""What a strength is a share of: the mean variance of all features, the variance of each, or nothing."""
_SMALLEST = 1e-10  # share of the largest principal value below which a direction is rounding
_CANDIDATES = tuple(10.0 ** (0.25 * step) for step in range(-20, 13))
_NEAR = 0.2  # standard errors
_UNEQUAL = 3.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Fit:
    """Least squares in the principal directions of the features: what every strength of the penalty shares."""

    values_R: Tensor
    """Scatter of the features along each direction."""
    vectors_DR: Tensor
    """The directions, orthonormal, in the scale of `scale_D`."""
    scale_D: Tensor
    """What each feature is divided by."""
    mean_D: Tensor
    """Centre of the features; zeros where nothing is centred."""
    sum_KD: Tensor
    count_K: Tensor
    centred: bool

    @property
    def targets_RK(self) -> Tensor:
        """Products of the directions with the one-hot labels."""
        target_KD = (self.sum_KD - torch.outer(self.count_K, self.mean_D)) / self.scale_D
        return self.vectors_DR.T @ target_KD.T

    @property
    def middle_D(self) -> Tensor:
        """Mean of the class means; a class without images has none."""
        have_K = self.count_K > 0
        return (self.sum_KD[have_K] / self.count_K[have_K, None]).mean(0)

    def penalty(self, strength: float | None, meaning: Penalty, balance: bool) -> float:
        """The number that is added to each principal value; None chooses it (`automatic`).

        Where classes shall count alike though they have unequal numbers of images, the choice is multiplied by mean
        number / harmonic mean, at most 3, or for two classes by its fourth power: a class of few images among many is
        fitted by chance, which the score, an average over images, hardly sees. Chosen on validation images
        (docs/log.md, 2026-12-01).
        """
        if strength is None:
            have_K = self.count_K[self.count_K > 0]
            unequal = float(have_K.mean() * (1 / have_K).mean()) if balance else 1.0
            return self.automatic() * (unequal**4 if len(have_K) == 2 else min(unequal, _UNEQUAL))
        share = 1.0 if meaning == "absolute" else self.values_R.sum().item() / len(self.scale_D)
        return strength * share

    def automatic(self) -> float:
        """The penalty under which left-out images are predicted best, chosen from the sums alone.

        Score of a penalty: the correlation of labels and predictions of images left out, where generalised
        cross-validation (Golub, Heath and Wahba 1979) says how far an image pulls its own prediction. Their criterion
        is a squared error; a correlation ignores how far predictions are shrunk, as the largest one of them does too.
        Among penalties within a fifth of a standard error of the best score the largest is taken.
        """
        n, targets_RK = self.count_K.sum(), self.targets_RK
        if not len(self.values_R) or int((self.count_K > 0).sum()) < 2:
            return 1.0  # nothing to tell apart
        power_R = targets_RK.square().sum(1) / self.values_R  # of the labels, along each direction
        total = n - self.count_K.square().sum() / n if self.centred else n
        rest = (total - power_R.sum()).clamp_min(0)
        penalties_C = torch.tensor(_CANDIDATES, device=n.device, dtype=n.dtype) * self.values_R.sum() / n
        left_CR = penalties_C[:, None] / (self.values_R + penalties_C[:, None])
        free = (n - int(self.centred) - len(self.values_R)).clamp_min(0)
        pull_C = n / (left_CR.sum(1) + free)  # 1 / (1 - the mean pull of an image on its own prediction)
        out_CR = 1 - pull_C[:, None] * left_CR
        agree_C = out_CR @ power_R + rest * (1 - pull_C)
        size_C = out_CR.square() @ power_R + rest * (1 - pull_C).square()
        score_C = agree_C / (size_C * total).sqrt().clamp_min(1e-30)
        best = score_C.max()
        # scores of labels that are fitted without error differ by rounding alone
        near = score_C >= best - _NEAR * (1 - best.square()).clamp_min(0) / n.sqrt() - _ROUNDING
        return float(penalties_C[near.nonzero()[-1, 0]])

    def weights(self, penalty: float, balance: bool) -> tuple[Tensor, Tensor]:
        """Weights [K, D] and bias [K]; with `balance` all classes count alike, however many images each has."""
        n, classes, centre_D = self.count_K.sum(), len(self.count_K), self.mean_D
        prior_K = self.count_K / n
        target_KD = self.sum_KD - torch.outer(self.count_K, centre_D)
        if balance:
            if self.centred:
                centre_D = self.middle_D
            prior_K = torch.full_like(prior_K, 1 / classes)
            means_KD = self.sum_KD / self.count_K.clamp_min(1)[:, None]
            empty_K1 = (self.count_K == 0)[:, None]
            target_KD = n / classes * (means_KD - centre_D).masked_fill(empty_K1, 0)
        along_KR = (target_KD / self.scale_D) @ self.vectors_DR / (self.values_R + penalty)
        weight_KD = along_KR @ self.vectors_DR.T / self.scale_D
        return weight_KD, prior_K - weight_KD @ centre_D if self.centred else torch.zeros_like(prior_K)


class RidgeHead(nn.Module):
    """Ridge regression that never forgets: adding tasks one by one equals adding all at once.

    Keeps the sum of x x^T, the sum of x of each class, and counts (float64), or nothing but weights where it is given
    all features each time (`fit`).
    """

    weight_KD: Tensor
    bias_K: Tensor

    def __init__(
        self,
        width: int,
        strength: float | None = None,
        penalty: Penalty = "mean",
        centred: bool = True,
        sums: bool = True,
    ) -> None:
        """Start with no class.

        Args: strength of the penalty in the meaning of `penalty`, None chooses it anew for each solution; centred:
        False leaves out the intercept; sums: False keeps none until `begin_sums`.
        """
        super().__init__()
        self.width, self.strength, self.penalty, self.centred = width, strength, penalty, centred
        self.scatter_DD = SymmetricSum(width if sums else 0)
        self.sum_KD, self.count_K = Sum(0, width if sums else 0), Sum(0)
        self._last: Fit | None = None  # of the last `fit`, which `out_of_fold` asks for right after it
        self.register_buffer("weight_KD", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("bias_K", torch.zeros(0, dtype=torch.float64))

    def begin_sums(self) -> None:
        """Make room for sums, from zero."""
        like = self.weight_KD
        self.scatter_DD.value = like.new_zeros(self.width, self.width)
        self.sum_KD.value, self.count_K.value = torch.zeros_like(like), torch.zeros_like(like[:, 0])

    def grow(self, classes: int) -> None:
        """Append `classes` classes with no image seen yet."""
        self.sum_KD.grow(classes)
        self.count_K.grow(classes)
        self.weight_KD = torch.cat([self.weight_KD, self.weight_KD.new_zeros(classes, self.width)])
        self.bias_K = torch.cat([self.bias_K, self.bias_K.new_zeros(classes)])

    def add(self, features_BD: Tensor, labels_B: Tensor) -> None:
        """Add features [B, D] of images with class ids [B]."""
        x_BD = features_BD.double()
        self.scatter_DD.add_products(x_BD)
        self.sum_KD.add_rows(labels_B, x_BD)
        self.count_K.add_rows(labels_B, torch.ones_like(x_BD[:, 0]))

    def solve(self, balance: bool = False) -> None:
        """Set weights and bias from the sums; balance: all classes count alike, however many images each has."""
        sum_KD, count_K = self.sum_KD.value, self.count_K.value
        mean_D = self._mean(sum_KD, count_K)
        scatter_DD = self.scatter_DD.value - count_K.sum() * torch.outer(mean_D, mean_D)
        scale_D = self._scale(scatter_DD.diagonal())
        values_D, vectors_DD = torch.linalg.eigh(scatter_DD / torch.outer(scale_D, scale_D))
        kept = values_D > _SMALLEST * values_D[-1].clamp_min(0)
        self._take(Fit(values_D[kept], vectors_DD[:, kept], scale_D, mean_D, sum_KD, count_K, self.centred), balance)

    def fit(self, features_ND: Tensor, labels_N: Tensor, balance: bool = False) -> None:
        """Set weights and bias from all features [N, D] and class ids [N] at once; no sums are kept."""
        self._last = self._fit_of(features_ND.double(), labels_N)
        self._take(self._last, balance)

    def out_of_fold(self, features_ND: Tensor, labels_N: Tensor, balance: bool = False) -> Tensor:
        """Logits [N, K] of each image by a solution that has not seen it, for the penalty that all of them choose.

        From one solution, as the residual of a left-out image is its own over 1 minus its leverage (Allen 1974). With
        `balance` an image weighs what it weighs among all of them: counted anew without the one that is left out, the
        others of its class would weigh more, by a quarter where there are five, and a new image would never look so
        familiar. The features are those of the last `fit`. What is said of the only image of a class means nothing.
        """
        x_ND = features_ND.double()
        fit, self._last = self._last or self._fit_of(x_ND, labels_N), None
        penalty, n, classes = fit.penalty(self.strength, self.penalty, balance), len(x_ND), len(fit.count_K)
        along_NR = (x_ND - fit.mean_D) / fit.scale_D @ fit.vectors_DR
        leverage_N = (along_NR.square() / (fit.values_R + penalty)).sum(1) + self.centred / n
        label_NK = torch.nn.functional.one_hot(labels_N, classes).double()
        raw_RK = fit.targets_RK / (fit.values_R + penalty)[:, None]
        prior_K = fit.count_K / n if self.centred else torch.zeros_like(fit.count_K)
        out_NK = (along_NR @ raw_RK + prior_K - leverage_N[:, None] * label_NK) / (1 - leverage_N)[:, None]
        if not balance:
            return out_NK
        # As `weights` with balance: each class divided by its images.
        weight_K = n / classes / fit.count_K.clamp_min(1)
        if not self.centred:
            return weight_K * out_NK
        shift_R = (fit.mean_D - fit.middle_D) / fit.scale_D @ fit.vectors_DR
        own_NK = weight_K * (out_NK + shift_R @ raw_RK)
        # what is the same for all classes, as they are counted from the middle of their means
        common_R = shift_R / (fit.values_R + penalty)
        common_N = along_NR @ common_R / (1 - leverage_N) + shift_R @ common_R
        return own_NK + n / classes * common_N[:, None]

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, K]: estimated one-hot labels."""
        return (features_BD.double() @ self.weight_KD.T + self.bias_K).float()

    def _take(self, fit: Fit, balance: bool) -> None:
        self.weight_KD, self.bias_K = fit.weights(fit.penalty(self.strength, self.penalty, balance), balance)

    def _fit_of(self, x_ND: Tensor, labels_N: Tensor) -> Fit:
        """The Fit of all features; with fewer images than features, from products of images."""
        classes = len(self.weight_KD)
        count_K = torch.bincount(labels_N, minlength=classes).to(x_ND.dtype)
        sum_KD = x_ND.new_zeros(classes, self.width).index_add_(0, labels_N, x_ND)
        mean_D = self._mean(sum_KD, count_K)
        x_ND = x_ND - mean_D
        scale_D = self._scale(x_ND.square().sum(0))
        x_ND = x_ND / scale_D
        few = len(x_ND) < self.width
        values_R, vectors = torch.linalg.eigh(x_ND @ x_ND.T if few else x_ND.T @ x_ND)
        kept = values_R > _SMALLEST * values_R[-1:].clamp_min(0)
        values_R, vectors = values_R[kept], vectors[:, kept]
        vectors_DR = x_ND.T @ vectors / values_R.sqrt() if few else vectors
        return Fit(values_R, vectors_DR, scale_D, mean_D, sum_KD, count_K, self.centred)

    def _mean(self, sum_KD: Tensor, count_K: Tensor) -> Tensor:
        return sum_KD.sum(0) / count_K.sum().clamp_min(1) if self.centred else torch.zeros_like(sum_KD.sum(0))

    def _scale(self, variance_D: Tensor) -> Tensor:
        """What to divide each feature by, so that a penalty on all alike is a share of the variance of each."""
        if self.penalty != "each":
            return torch.ones_like(variance_D)
        # A feature that never varies gets weight 0: it has no part in any direction that is kept.
        return torch.where(variance_D > 0, variance_D, 1.0).sqrt()
