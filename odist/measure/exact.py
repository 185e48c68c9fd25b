"""Exact metrics of stored predictions, each with a confidence interval over rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from odist.measure.intervals import intervals_within_range, mean_over_rows_interval, proportion_interval
from odist.measure.metrics import OF_EACH_LABEL, over_labels
from odist.measure.scores import (
    as_array,
    auc_delong,
    calibration_error_of,
    calibration_sums,
    log_loss_rows,
    mean_and_interval,
    rank_of_target,
)


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
    p, y = as_array(probabilities), as_array(targets)
    if p.ndim != 1 or p.shape != y.shape or len(p) == 0:
        raise ValueError(f"expected two arrays of one shape [n], n > 0, got {p.shape} and {y.shape}")
    w = None if weights is None else as_array(weights)
    loss = log_loss_rows(p, y)
    right = (p > 0.5) == (y > 0.5)
    auc, auc_interval = auc_delong(p, y, weights=w, confidence=confidence)
    log_loss, log_loss_interval = mean_and_interval(loss, w, confidence=confidence)
    if w is None:
        correct = float(right.sum())
        accuracy, accuracy_interval = correct / len(p), proportion_interval(correct, len(p), confidence=confidence)
    else:
        accuracy, accuracy_interval = mean_and_interval(right.astype(np.float64), w, confidence=confidence)
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
        "calibration_error": calibration_error_of(calibration_sums(p, y, ones, num_calibration_bins)),
        "mean_prediction": float(np.average(p, weights=w)),
        "base_rate": float(np.average(y, weights=w)),
    }
    if bayes is not None:
        excess = loss - log_loss_rows(as_array(bayes), y)
        result["excess_log_loss"], result["excess_log_loss_interval"] = mean_and_interval(
            excess, w, confidence=confidence
        )
    return intervals_within_range(result)


def label_results(
    probabilities: np.ndarray, targets: np.ndarray, *, names: list[str], weights: np.ndarray | None = None
) -> dict[str, Any]:
    """Metrics of several binary labels: the means over the labels, and some of each under `<metric>_<label>`.

    probabilities, targets: [n, labels]; weights: [n], None: all 1
    The interval of log_loss is over rows, of each row's mean over its labels.
    """
    each = [binary_results(probabilities[:, place], targets[:, place], weights=weights) for place in range(len(names))]
    result = over_labels(each, names)
    rows = np.mean(
        [log_loss_rows(as_array(p), as_array(y)) for p, y in zip(probabilities.T, targets.T, strict=True)], 0
    )
    _, result["log_loss_interval"] = mean_and_interval(rows, weights, confidence=0.95)
    for name, own in zip(names, each, strict=True):
        result |= {f"{metric}_{name}_interval": own[f"{metric}_interval"] for metric in OF_EACH_LABEL}
    return intervals_within_range(result)


def multiclass_results(
    probabilities: Any, targets: Any, *, confidence: float = 0.95, num_calibration_bins: int = 15
) -> dict[str, Any]:
    """Exact metrics of probabilities [n, C] and class indices [n], with intervals over rows."""
    p, y = as_array(probabilities), as_array(targets).astype(np.int64)
    if p.ndim != 2 or y.shape != p.shape[:1] or len(p) == 0:
        raise ValueError(f"expected probabilities [n, C] and targets [n], n > 0, got {p.shape} and {y.shape}")
    loss = -np.log(np.maximum(p[np.arange(len(y)), y], np.finfo(np.float64).eps))
    interval = mean_over_rows_interval(loss, confidence=confidence)
    rank = rank_of_target(p, y)
    top1, top5 = float((rank == 0).sum()), float((rank < 5).sum())
    sums = calibration_sums(p.max(axis=1), (rank == 0).astype(np.float64), np.ones(len(y)), num_calibration_bins)
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
        "calibration_error": calibration_error_of(sums),
    }
    return intervals_within_range(result)
