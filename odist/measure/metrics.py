"""Metrics as sums over batches, so that a metric of a whole split never needs all its predictions at once.

Results of stored predictions, with intervals over rows, are in odist.measure.exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from odist.measure.scores import (
    as_array,
    calibration_error_of,
    calibration_sums,
    log_loss_rows,
    rank_of_target,
    sigmoid,
    softplus,
)

LARGEST_LOGIT = 16.0  # the score histogram of the AUC spans [-16, 16]: probabilities 1e-7 to 1 - 1e-7
OVER_LABELS = ("log_loss", "auc", "accuracy", "brier", "calibration_error", "mean_prediction", "base_rate")
OF_EACH_LABEL = ("log_loss", "auc")


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
        z, y = as_array(logits), as_array(targets)
        w = np.ones_like(z) if weights is None else as_array(weights)
        if z.ndim != 1 or y.shape != z.shape or w.shape != z.shape:
            raise ValueError(f"expected three arrays of shape [n], got {z.shape}, {y.shape}, {w.shape}")
        p = sigmoid(z)
        loss = np.where(y > 0.5, softplus(-z), softplus(z))
        sums = [w.sum(), w @ loss, w @ ((p > 0.5) == (y > 0.5)), w @ (p - y) ** 2, w @ p, w @ y, 0.0, 0.0]
        if bayes is not None:
            sums[6:] = [w.sum(), w @ (loss - log_loss_rows(as_array(bayes), y))]
        self.arrays["sums"] += np.array(sums)
        self.arrays["rows"] += len(z)
        calibration, scores = self.arrays["calibration"], self.arrays["scores"]
        calibration += calibration_sums(p, y, w, len(calibration))
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
        result["calibration_error"] = calibration_error_of(self.arrays["calibration"])
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
        return over_labels([own.result() for own in self.labels], self.names)


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
        z = as_array(logits)
        y = as_array(targets).astype(np.int64)
        w = np.ones(y.shape) if weights is None else as_array(weights)
        if z.ndim < 2 or y.shape != z.shape[:-1] or w.shape != y.shape:
            raise ValueError(f"expected logits [n, C], targets [n], weights [n], got {z.shape}, {y.shape}, {w.shape}")
        z, y, w = z.reshape(-1, z.shape[-1]), y.ravel(), w.ravel()
        highest = z.max(axis=1)
        with np.errstate(invalid="ignore"):  # infinite logits of a diverged model give NaN, which the loss shows
            log_sum = highest + np.log(np.exp(z - highest[:, None]).sum(axis=1))
        rank = rank_of_target(z, y)
        top1 = rank == 0
        loss = log_sum - z[np.arange(len(y)), y]
        self.arrays["sums"] += np.array([w.sum(), w @ loss, w @ top1, w @ (rank < 5)])
        self.arrays["rows"] += len(y)
        calibration = self.arrays["calibration"]
        calibration += calibration_sums(np.exp(highest - log_sum), top1.astype(np.float64), w, len(calibration))

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
            "calibration_error": calibration_error_of(self.arrays["calibration"]),
        }


def over_labels(each: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Means over the labels of what is known of all of them, and each label's own."""
    result: dict[str, Any] = {"rows": each[0]["rows"]}
    for metric in OVER_LABELS:
        own = [one[metric] for one in each]
        result[metric] = None if None in own else float(np.mean(own))
    for name, one in zip(names, each, strict=True):
        result |= {f"{metric}_{name}": one[metric] for metric in OF_EACH_LABEL}
    return result
