"""What metrics of predictions are made of: losses of rows, calibration, ranks, the area under the ROC curve.

Arrays of numpy; torch tensors are accepted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from odist.measure.intervals import mean_over_rows_interval, normal_quantile


def as_array(values: Any) -> np.ndarray:
    """Values as a float64 array; a torch tensor is detached and brought to the CPU first."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def softplus(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-softplus(-z))


def calibration_sums(probabilities: np.ndarray, outcomes: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """[bins, 3] sums of weight, probability and outcome in bins of equal width; NaN falls in the last bin."""
    index = np.minimum(np.nan_to_num(probabilities, nan=1.0) * bins, bins - 1).astype(np.int64)
    columns = (weights, weights * probabilities, weights * outcomes)
    return np.stack([np.bincount(index, weights=column, minlength=bins) for column in columns], axis=1)


def calibration_error_of(sums: np.ndarray) -> float:
    """Expected calibration error: mean over rows of |mean probability - mean outcome| of the row's bin."""
    return float(np.abs(sums[:, 1] - sums[:, 2]).sum() / sums[:, 0].sum())


def rank_of_target(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How many classes come before the target's; of equal scores the lower class comes first, as in argmax."""
    own = scores[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(scores.shape[1]) < targets[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1) + np.isnan(own[:, 0])


def log_loss_rows(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log loss of each row [n] in nats; probabilities of exactly 0 and 1 are moved by one float64 epsilon."""
    eps = np.finfo(np.float64).eps
    p = np.clip(probabilities, eps, 1 - eps)
    return -np.where(targets > 0.5, np.log(p), np.log1p(-p))


def constant_loss(prior: np.ndarray, targets: np.ndarray) -> float:
    """Mean loss in nats of predicting the same for every row.

    prior: [C] probability of each class; targets: [n]
    """
    eps = float(np.finfo(np.float64).eps)
    counts = np.bincount(targets.astype(np.int64), minlength=len(prior))
    return float(-(counts @ np.log(np.maximum(prior.astype(np.float64), eps))) / len(targets))


def loss_of_correct(probabilities: np.ndarray) -> np.ndarray:
    """Cross-entropy of each row in nats, of any shape, from the probability of its correct class alone."""
    return -np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))  # as they are stored


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [n] from 1 of values [n], equal values sharing their mean rank, as scipy.stats.rankdata.

    Importing scipy.stats would add 0.7 s to the end of every training run.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def auc_delong(
    scores: Any, targets: Any, *, weights: np.ndarray | None = None, confidence: float = 0.95
) -> tuple[float | None, list[float] | None]:
    """Area under the ROC curve and its DeLong interval, in O(n log n).

    weights: of the rows, None: all 1
    DeLong et al. 1988 by mid-ranks (Sun and Xu 2014). None for targets of one class; no interval with
    fewer than two rows of a class.
    """
    s, y = as_array(scores), as_array(targets) > 0.5
    m, n = int(y.sum()), int((~y).sum())
    if m == 0 or n == 0:
        return None, None
    if weights is not None:
        return _weighted_auc(s, y, weights, confidence=confidence)
    ranks = mid_ranks(s)
    of_positives = (ranks[y] - mid_ranks(s[y])) / n  # share of negatives below each positive
    of_negatives = 1 - (ranks[~y] - mid_ranks(s[~y])) / m  # share of positives above each negative
    auc = float(of_positives.mean())
    if m < 2 or n < 2:
        return auc, None
    variance = np.var(of_positives, ddof=1) / m + np.var(of_negatives, ddof=1) / n
    half = normal_quantile(0.5 + confidence / 2) * math.sqrt(float(variance))
    return auc, [max(0.0, auc - half), min(1.0, auc + half)]


def _weighted_auc(
    s: np.ndarray, y: np.ndarray, weights: np.ndarray, *, confidence: float
) -> tuple[float | None, list[float] | None]:
    """The same with weights: a pair counts the product of its two weights."""
    values, place = np.unique(s, return_inverse=True)

    def share_below(of: np.ndarray) -> np.ndarray:
        # Of the rows `of`, the share of their weight that lies below each row; ties count half.
        own = np.bincount(place[of], weights=weights[of], minlength=len(values))
        return np.asarray((np.cumsum(own) - 0.5 * own)[place] / own.sum())

    parts = ((share_below(~y)[y], weights[y]), (1 - share_below(y)[~y], weights[~y]))
    if not all(weight.sum() > 0 for _, weight in parts):
        return None, None
    auc = float(np.average(parts[0][0], weights=parts[0][1]))
    errors = [weighted_error(values, weight) for values, weight in parts]
    if None in errors:
        return auc, None
    half = normal_quantile(0.5 + confidence / 2) * math.hypot(*(error for error in errors if error is not None))
    return auc, [max(0.0, auc - half), min(1.0, auc + half)]


def weighted_error(values: np.ndarray, weights: np.ndarray) -> float | None:
    """Standard error of a weighted mean of independent rows, the weights given; None below two."""
    n = len(values)
    if n < 2:
        return None
    away = weights * (values - np.average(values, weights=weights))
    return float(math.sqrt(float(away @ away) * n / (n - 1)) / weights.sum())


def mean_and_interval(
    values: np.ndarray, weights: np.ndarray | None, *, confidence: float
) -> tuple[float, list[float] | None]:
    """Mean of independent rows and its normal interval."""
    if weights is None:
        return float(values.mean()), mean_over_rows_interval(values, confidence=confidence)
    mean, error = float(np.average(values, weights=weights)), weighted_error(values, weights)
    half = None if error is None else normal_quantile(0.5 + confidence / 2) * error
    return mean, None if half is None else [mean - half, mean + half]
