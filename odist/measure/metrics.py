"""Metrics of predictions: sums over batches, and exact results of whole arrays.

`BinaryMetrics` and `MulticlassMetrics` hold nothing but sums, so that a metric of a whole split never
needs all its predictions at once. `binary_results` and `multiclass_results` work on stored
probabilities and give confidence intervals over rows. Arrays of numpy; torch tensors are accepted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from odist.measure.intervals import (
    intervals_within_range,
    mean_over_rows_interval,
    normal_quantile,
    proportion_interval,
)

LARGEST_LOGIT = 16.0  # the score histogram of the AUC spans [-16, 16]: probabilities 1e-7 to 1 - 1e-7


def _array(values: Any) -> np.ndarray:
    """Values as a float64 array; a torch tensor is detached and brought to the CPU first."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _softplus(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-_softplus(-z))


def _calibration_sums(probabilities: np.ndarray, outcomes: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """[bins, 3] sums of weight, probability and outcome in bins of equal width; NaN falls in the last bin."""
    index = np.minimum(np.nan_to_num(probabilities, nan=1.0) * bins, bins - 1).astype(np.int64)
    columns = (weights, weights * probabilities, weights * outcomes)
    return np.stack([np.bincount(index, weights=column, minlength=bins) for column in columns], axis=1)


def _calibration_error(sums: np.ndarray) -> float:
    """Expected calibration error: mean over rows of |mean probability - mean outcome| of the row's bin."""
    return float(np.abs(sums[:, 1] - sums[:, 2]).sum() / sums[:, 0].sum())


class _Totals:
    """Metrics that are made of nothing but sums, by name in `arrays`."""

    arrays: dict[str, np.ndarray]

    def totals(self) -> dict[str, np.ndarray]:
        """The sums themselves."""
        return self.arrays

    def add(self, totals: dict[str, np.ndarray]) -> None:
        """Take in the sums of other batches."""
        for name, values in totals.items():
            self.arrays[name] += values


class BinaryMetrics(_Totals):
    """Log loss, AUC, accuracy, Brier score and calibration of a binary task, from logits.

    The AUC comes from a histogram of the logits clipped to +-16 (width of a bin: 32 / num_score_bins,
    5e-4 by default). Pairs of a positive and a negative in one bin count half; `auc_error_bound` of
    the result is half the share of such pairs, which the exact AUC cannot be further away than.
    """

    FIELDS = ("weight", "loss", "correct", "brier", "prediction", "target", "bayes_weight", "bayes_excess")

    def __init__(self, num_calibration_bins: int = 15, *, num_score_bins: int = 1 << 16) -> None:
        self.arrays = {
            "sums": np.zeros(len(self.FIELDS)),
            "calibration": np.zeros((num_calibration_bins, 3)),
            "scores": np.zeros((2, num_score_bins)),
            "rows": np.zeros(1),
        }

    def update(self, logits: Any, targets: Any, weights: Any = None, *, bayes: Any = None) -> None:
        """Add a batch: logits [n], targets [n] in {0, 1}, weights [n] >= 0, bayes [n] optimal probabilities."""
        z, y = _array(logits), _array(targets)
        w = np.ones_like(z) if weights is None else _array(weights)
        if z.ndim != 1 or y.shape != z.shape or w.shape != z.shape:
            raise ValueError(f"expected three arrays of shape [n], got {z.shape}, {y.shape}, {w.shape}")
        p = _sigmoid(z)
        loss = np.where(y > 0.5, _softplus(-z), _softplus(z))
        sums = [w.sum(), w @ loss, w @ ((p > 0.5) == (y > 0.5)), w @ (p - y) ** 2, w @ p, w @ y, 0.0, 0.0]
        if bayes is not None:
            sums[6:] = [w.sum(), w @ (loss - log_loss_rows(_array(bayes), y))]
        self.arrays["sums"] += np.array(sums)
        self.arrays["rows"] += len(z)
        calibration, scores = self.arrays["calibration"], self.arrays["scores"]
        calibration += _calibration_sums(p, y, w, len(calibration))
        bins = scores.shape[1]
        clipped = np.clip(np.nan_to_num(z), -LARGEST_LOGIT, LARGEST_LOGIT)
        index = np.minimum((clipped + LARGEST_LOGIT) * (bins / (2 * LARGEST_LOGIT)), bins - 1).astype(np.int64)
        scores[0] += np.bincount(index, weights=w * (1 - y), minlength=bins)
        scores[1] += np.bincount(index, weights=w * y, minlength=bins)

    def result(self) -> dict[str, float | int | None]:
        """log_loss (nats), auc, auc_error_bound, accuracy, brier, calibration_error, mean_prediction, base_rate,
        rows, and excess_log_loss where Bayes probabilities were given. None where undefined: no rows, or
        an AUC of one class."""
        sums = dict(zip(self.FIELDS, self.arrays["sums"].tolist(), strict=True))
        names = ("log_loss", "accuracy", "brier", "mean_prediction", "base_rate", "calibration_error")
        result: dict[str, float | int | None] = {"rows": int(self.arrays["rows"][0]), **dict.fromkeys(names)}
        result |= {"auc": None, "auc_error_bound": None}
        total = sums["weight"]
        if total == 0:
            return result
        fields = ("loss", "correct", "brier", "prediction", "target")
        result |= {name: sums[field] / total for name, field in zip(names, fields, strict=False)}
        result["calibration_error"] = _calibration_error(self.arrays["calibration"])
        negatives, positives = self.arrays["scores"]
        pairs = negatives.sum() * positives.sum()
        if pairs > 0:
            tied = float(negatives @ positives)
            below = np.cumsum(negatives) - negatives
            broken = math.isnan(sums["loss"])  # a NaN logit has no place in the histogram
            result["auc"] = math.nan if broken else float((positives @ below + 0.5 * tied) / pairs)
            result["auc_error_bound"] = math.nan if broken else float(0.5 * tied / pairs)
        if sums["bayes_weight"] > 0:
            result["excess_log_loss"] = sums["bayes_excess"] / sums["bayes_weight"]
        return result


class LabelMetrics(_Totals):
    """Metrics of several binary labels, from logits; see `label_results`.

    names: of the labels
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.labels = [BinaryMetrics() for _ in names]
        self.arrays = {
            f"{place} {name}": array for place, own in enumerate(self.labels) for name, array in own.arrays.items()
        }

    def update(self, logits: Any, targets: Any, weights: Any = None, *, bayes: Any = None) -> None:
        """Add a batch: logits, targets in {0, 1}, weights >= 0, each [n, labels]."""
        for place, own in enumerate(self.labels):
            own.update(logits[:, place], targets[:, place], None if weights is None else weights[:, place])

    def result(self) -> dict[str, float | int | None]:
        """Means over the labels, and log_loss and auc of each; None where undefined."""
        return _over_labels([own.result() for own in self.labels], self.names)


class MulticlassMetrics(_Totals):
    """Cross-entropy, accuracy and calibration of a task of C exclusive classes, from logits."""

    FIELDS = ("weight", "loss", "top1", "top5")

    def __init__(self, num_calibration_bins: int = 15) -> None:
        self.arrays = {
            "sums": np.zeros(len(self.FIELDS)),
            "calibration": np.zeros((num_calibration_bins, 3)),
            "rows": np.zeros(1),
        }

    def update(self, logits: Any, targets: Any, weights: Any = None) -> None:
        """Add a batch: logits [..., C], targets [...] class indices, weights [...] >= 0; of any leading shape."""
        z = _array(logits)
        y = _array(targets).astype(np.int64)
        w = np.ones(y.shape) if weights is None else _array(weights)
        if z.ndim < 2 or y.shape != z.shape[:-1] or w.shape != y.shape:
            raise ValueError(f"expected logits [n, C], targets [n], weights [n], got {z.shape}, {y.shape}, {w.shape}")
        z, y, w = z.reshape(-1, z.shape[-1]), y.ravel(), w.ravel()
        highest = z.max(axis=1)
        with np.errstate(invalid="ignore"):  # infinite logits of a diverged model give NaN, which the loss shows
            log_sum = highest + np.log(np.exp(z - highest[:, None]).sum(axis=1))
        rank = _rank_of_target(z, y)
        top1 = rank == 0
        loss = log_sum - z[np.arange(len(y)), y]
        self.arrays["sums"] += np.array([w.sum(), w @ loss, w @ top1, w @ (rank < 5)])
        self.arrays["rows"] += len(y)
        calibration = self.arrays["calibration"]
        calibration += _calibration_sums(np.exp(highest - log_sum), top1.astype(np.float64), w, len(calibration))

    def result(self) -> dict[str, float | int | None]:
        """cross_entropy (nats), perplexity, top1, top5, calibration_error of the top prediction, rows; None
        where there are no rows."""
        weight, loss, top1, top5 = self.arrays["sums"].tolist()
        result: dict[str, float | int | None] = {"rows": int(self.arrays["rows"][0])}
        if weight == 0:
            return result | dict.fromkeys(("cross_entropy", "perplexity", "top1", "top5", "calibration_error"))
        cross_entropy = loss / weight
        return result | {
            "cross_entropy": cross_entropy,
            "perplexity": math.exp(min(cross_entropy, 700.0)),
            "top1": top1 / weight,
            "top5": top5 / weight,
            "calibration_error": _calibration_error(self.arrays["calibration"]),
        }


def _rank_of_target(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
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
    s, y = _array(scores), _array(targets) > 0.5
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
    errors = [_weighted_error(values, weight) for values, weight in parts]
    if None in errors:
        return auc, None
    half = normal_quantile(0.5 + confidence / 2) * math.hypot(*(error for error in errors if error is not None))
    return auc, [max(0.0, auc - half), min(1.0, auc + half)]


def _weighted_error(values: np.ndarray, weights: np.ndarray) -> float | None:
    """Standard error of a weighted mean of independent rows, the weights given; None below two."""
    n = len(values)
    if n < 2:
        return None
    away = weights * (values - np.average(values, weights=weights))
    return float(math.sqrt(float(away @ away) * n / (n - 1)) / weights.sum())


def _mean_and_interval(
    values: np.ndarray, weights: np.ndarray | None, *, confidence: float
) -> tuple[float, list[float] | None]:
    """Mean of independent rows and its normal interval."""
    if weights is None:
        return float(values.mean()), mean_over_rows_interval(values, confidence=confidence)
    mean, error = float(np.average(values, weights=weights)), _weighted_error(values, weights)
    half = None if error is None else normal_quantile(0.5 + confidence / 2) * error
    return mean, None if half is None else [mean - half, mean + half]


def binary_results(
    probabilities: Any,
    targets: Any,
    *,
    bayes: Any = None,
    weights: Any = None,
    confidence: float = 0.95,
    num_calibration_bins: int = 15,
) -> dict[str, Any]:
    """Exact metrics of whole arrays, each with its interval over rows under `<name>_interval`.

    probabilities, targets, bayes, weights: [n]; bayes are the generator's optimal probabilities; weights None: all 1
    Intervals: log_loss and excess_log_loss normal over rows (the latter of paired differences), auc
    DeLong, accuracy Wilson, with weights normal. auc is None for targets of one class.
    """
    p, y = _array(probabilities), _array(targets)
    if p.ndim != 1 or p.shape != y.shape or len(p) == 0:
        raise ValueError(f"expected two arrays of one shape [n], n > 0, got {p.shape} and {y.shape}")
    w = None if weights is None else _array(weights)
    loss = log_loss_rows(p, y)
    right = (p > 0.5) == (y > 0.5)
    auc, auc_interval = auc_delong(p, y, weights=w, confidence=confidence)
    log_loss, log_loss_interval = _mean_and_interval(loss, w, confidence=confidence)
    if w is None:
        correct = float(right.sum())
        accuracy, accuracy_interval = correct / len(p), proportion_interval(correct, len(p), confidence=confidence)
    else:
        accuracy, accuracy_interval = _mean_and_interval(right.astype(np.float64), w, confidence=confidence)
    ones = np.ones_like(p) if w is None else w
    result: dict[str, Any] = {
        "rows": len(p),
        "log_loss": log_loss,
        "log_loss_interval": log_loss_interval,
        "auc": auc,
        "auc_interval": auc_interval,
        "accuracy": accuracy,
        "accuracy_interval": accuracy_interval,
        "brier": float(np.average((p - y) ** 2, weights=w)),
        "calibration_error": _calibration_error(_calibration_sums(p, y, ones, num_calibration_bins)),
        "mean_prediction": float(np.average(p, weights=w)),
        "base_rate": float(np.average(y, weights=w)),
    }
    if bayes is not None:
        excess = loss - log_loss_rows(_array(bayes), y)
        result["excess_log_loss"], result["excess_log_loss_interval"] = _mean_and_interval(
            excess, w, confidence=confidence
        )
    return intervals_within_range(result)


OVER_LABELS = ("log_loss", "auc", "accuracy", "brier", "calibration_error", "mean_prediction", "base_rate")
OF_EACH_LABEL = ("log_loss", "auc")


def label_results(
    probabilities: np.ndarray, targets: np.ndarray, *, names: list[str], weights: np.ndarray | None = None
) -> dict[str, Any]:
    """Metrics of several binary labels: the means over the labels, and some of each under `<metric>_<label>`.

    probabilities, targets: [n, labels]; weights: [n], None: all 1
    The interval of log_loss is over rows, of each row's mean over its labels.
    """
    each = [binary_results(probabilities[:, place], targets[:, place], weights=weights) for place in range(len(names))]
    result = _over_labels(each, names)
    rows = np.mean([log_loss_rows(_array(p), _array(y)) for p, y in zip(probabilities.T, targets.T, strict=True)], 0)
    _, result["log_loss_interval"] = _mean_and_interval(rows, weights, confidence=0.95)
    for name, own in zip(names, each, strict=True):
        result |= {f"{metric}_{name}_interval": own[f"{metric}_interval"] for metric in OF_EACH_LABEL}
    return intervals_within_range(result)


def _over_labels(each: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Means over the labels of what is known of all of them, and each label's own."""
    result: dict[str, Any] = {"rows": each[0]["rows"]}
    for metric in OVER_LABELS:
        own = [one[metric] for one in each]
        result[metric] = None if None in own else float(np.mean(own))
    for name, one in zip(names, each, strict=True):
        result |= {f"{metric}_{name}": one[metric] for metric in OF_EACH_LABEL}
    return result


def multiclass_results(
    probabilities: Any, targets: Any, *, confidence: float = 0.95, num_calibration_bins: int = 15
) -> dict[str, Any]:
    """Exact metrics of probabilities [n, C] and class indices [n], with intervals over rows."""
    p, y = _array(probabilities), _array(targets).astype(np.int64)
    if p.ndim != 2 or y.shape != p.shape[:1] or len(p) == 0:
        raise ValueError(f"expected probabilities [n, C] and targets [n], n > 0, got {p.shape} and {y.shape}")
    loss = -np.log(np.maximum(p[np.arange(len(y)), y], np.finfo(np.float64).eps))
    interval = mean_over_rows_interval(loss, confidence=confidence)
    rank = _rank_of_target(p, y)
    top1, top5 = float((rank == 0).sum()), float((rank < 5).sum())
    sums = _calibration_sums(p.max(axis=1), (rank == 0).astype(np.float64), np.ones(len(y)), num_calibration_bins)
    result = {
        "rows": len(y),
        "cross_entropy": float(loss.mean()),
        "cross_entropy_interval": interval,
        "perplexity": math.exp(float(loss.mean())),
        "perplexity_interval": interval and [math.exp(bound) for bound in interval],
        "top1": top1 / len(y),
        "top1_interval": proportion_interval(top1, len(y), confidence=confidence),
        "top5": top5 / len(y),
        "top5_interval": proportion_interval(top5, len(y), confidence=confidence),
        "calibration_error": _calibration_error(sums),
    }
    return intervals_within_range(result)
