"""Prediction churn: how much the predictions of one system move when it is only trained again.

Compares independent retrains of one system with each other, over all pairs, never the groups inside
one run (Anil et al. 2018, section 3.5). Two systems are not compared: that would measure the change between
them, not the retraining. odist.measure.predictions finds the predictions of run folders and files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from typing import Any

import numpy as np

from odist.errors import UserError
from odist.measure.exact import binary_results, multiclass_results
from odist.measure.intervals import mean_interval, mean_over_pairs, within_range
from odist.measure.scores import loss_of_correct
from odist.measure.slices import coded, slice_rows

PAIR_METRICS = (
    "mean_abs_difference",
    "churn_without_shift",
    "root_mean_square",
    "flips",
    "relative_difference",
    "rank_correlation",
)
_WITHOUT_SHIFT = "the same after each of the two has given up its mean difference in logits from the other"
SMALLEST_PROBABILITY = 1e-9  # before logits are taken: float32 predictions hold exact zeros and ones


class Form(StrEnum):
    """What a prediction holds of each row."""

    binary = "probability of the positive class"
    classes = "probability of every class"
    label = "probability of the correct class"  # of many, such as the vocabulary of a language model


def form_of(probabilities: np.ndarray, targets: np.ndarray | None) -> Form:
    """The form of what odist stores: [rows, classes], or [rows] of the positive class or, with targets above 1, of
    the correct one."""
    if probabilities.ndim == 2:
        return Form.classes
    return Form.label if targets is not None and len(targets) and targets.max() > 1 else Form.binary


# What readers see where |p1 - p2| of the positive class is not what is averaged; keys of JSON and records are the same.
SHOWN_NAMES = {
    (Form.classes, "mean_abs_difference"): "mean_total_variation",
    (Form.label, "mean_abs_difference"): "mean_abs_difference_of_label",
}


def definitions(form: Form, *, threshold: float = 0.5) -> dict[str, str]:
    """What those of PAIR_METRICS are that depend on the form of the predictions."""
    if form is Form.classes:
        return {
            "mean_abs_difference": "mean over rows of the total variation: half the sum over classes of |p1 - p2|",
            "churn_without_shift": _WITHOUT_SHIFT,
            "flips": "share of rows whose most probable class changes",
        }
    distance = f"mean over rows of |p1 - p2|, p the {form.value}"
    if form is Form.label:
        unknown = "not known, as of each row only that probability is kept and not the most probable class"
        return {
            "mean_abs_difference": f"{distance} (of text: of the correct piece)",
            "churn_without_shift": "not known, for the same reason as flips",
            "flips": unknown,
        }
    flips = f"share of rows with one of p1 and p2 above {threshold:g} and the other not"
    return {"mean_abs_difference": distance, "churn_without_shift": _WITHOUT_SHIFT, "flips": flips}


@dataclass(frozen=True)
class ChurnResult:
    """Churn between the retrains of one system.

    form: what was compared; definitions: what the measures that depend on it are
    metrics: each of PAIR_METRICS, a mean over all pairs, with `<name>_interval` (None below three runs);
        the loss (log_loss of a binary task, else cross_entropy) and calibration_error, means over runs, with theirs,
        when targets are known
    pairs: one dictionary a pair: first, second, and each of PAIR_METRICS
    runs: one dictionary a run: name, and the loss and calibration_error when targets are known
    slices: slice name -> dictionaries of value, rows, mean_abs_difference and its interval
    notes: what a reader should know before believing the numbers
    """

    names: list[str]
    rows: int
    form: Form
    definitions: dict[str, str]
    metrics: dict[str, Any]
    pairs: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    slices: dict[str, list[dict[str, Any]]]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; the metrics and their intervals are at the top level."""
        tables = {"pairs": self.pairs, "per_run": self.runs, "slices": self.slices, "notes": self.notes}
        compared = {"compared": self.form.value, "definitions": self.definitions}
        return {"runs": self.names, "rows": self.rows, **self.metrics, **compared, **tables}


def _decisions(p: np.ndarray, threshold: float) -> np.ndarray:
    return np.argmax(p, axis=1) if p.ndim == 2 else p > threshold


def row_differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Total variation [rows] between two predictions: |p1 - p2|, or half the sum of |.| over the classes."""
    difference = np.abs(first - second)
    return difference if difference.ndim == 1 else 0.5 * difference.sum(axis=1)


def without_shift(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two predictions after each has given up its mean difference in logits: half to either side, so that both move
    alike.

    first, second: [rows] of the positive class or [rows, classes]
    What is left is how rows move against each other; a retrain whose predictions are all a little higher has lost that.
    """
    return shifted(first, second, (centred_logits(first) - centred_logits(second)).mean(axis=0))


def shifted(first: np.ndarray, second: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two predictions after each has given up half of `shift` [classes], their mean difference in logits."""
    left = _softmax(centred_logits(first) - 0.5 * shift)
    right = _softmax(centred_logits(second) + 0.5 * shift)
    return (left[:, 1], right[:, 1]) if first.ndim == 1 else (left, right)


def centred_logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits [rows, classes] whose mean over the classes is 0; of the positive class alone, [rows], of both."""
    if probabilities.ndim == 1:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    logits = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return np.asarray(logits - logits.mean(axis=1, keepdims=True))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def pair_metrics(
    first: np.ndarray, second: np.ndarray, *, form: Form, threshold: float = 0.5
) -> dict[str, float | None]:
    """PAIR_METRICS of two retrains, probabilities [rows] or [rows, classes]; see `churn`."""
    difference = row_differences(first, second)
    total = first + second
    relative = np.divide(2 * np.abs(first - second), total, out=np.zeros_like(total), where=total > 0)
    correlation = None
    if first.ndim == 1 and np.ptp(first) > 0 and np.ptp(second) > 0:
        from scipy.stats import spearmanr

        correlation = float(spearmanr(first, second).statistic)
    flips = None
    if form is not Form.label:
        flips = float(np.mean(_decisions(first, threshold) != _decisions(second, threshold)))
    steady = None if form is Form.label else float(row_differences(*without_shift(first, second)).mean())
    return {
        "mean_abs_difference": float(difference.mean()),
        "churn_without_shift": steady,
        "root_mean_square": float(np.sqrt(np.mean(difference**2))),
        "flips": flips,
        "relative_difference": float(relative.mean()),
        "rank_correlation": correlation,
    }


def churn(
    predictions: Sequence[np.ndarray],
    *,
    targets: np.ndarray | None = None,
    form: Form | None = None,
    threshold: float = 0.5,
    slices: Mapping[str, np.ndarray] | None = None,
    confidence: float = 0.95,
    names: Sequence[str] | None = None,
) -> ChurnResult:
    """Compare retrains over all pairs of distinct runs.

    predictions: two or more arrays of probabilities of one shape, [rows] or [rows, classes]
    targets: [rows] labels; adds loss and calibration error of each run
    form: what the arrays hold; None: as `form_of` has it
    threshold: the decision whose flips are counted (binary tasks; otherwise the top class)
    slices: name -> [rows] values; the mean absolute difference is repeated within each value

    mean_abs_difference is the paper's measure (section 3.5): the mean over rows of |p1 - p2|; with
    classes, of the total variation sum_c |p1_c - p2_c| / 2, which for two classes is the same number.
    churn_without_shift is the same after the two have given up their mean difference in logits, see `without_shift`;
    None where only the probability of the correct class is known;
    root_mean_square is of the same row differences; flips the share of rows whose decision differs, None where
    only the probability of the correct class is known;
    relative_difference the mean of 2 |p1 - p2| / (p1 + p2) over all entries; rank_correlation
    Spearman's over rows (None with classes or constant predictions).

    Each is a mean over pairs with a delete-one-run jackknife interval. Pairs share runs, so they are no
    sample of their own; and drawing runs with replacement would pair a run with itself, whose
    difference is 0, and so understate churn: neither is done. Below three runs an interval is None.
    """
    arrays = [np.asarray(p, dtype=np.float64) for p in predictions]
    count, rows = len(arrays), len(arrays[0]) if arrays else 0
    names = list(names) if names is not None else [f"run {i + 1}" for i in range(count)]
    _check(arrays, names, targets)
    form = form if form is not None else form_of(arrays[0], targets)
    codes_of = {name: coded(np.asarray(values)) for name, values in (slices or {}).items()}
    slice_sums: dict[str, dict[tuple[int, int], np.ndarray]] = {name: {} for name in codes_of}
    by_pair: dict[tuple[int, int], dict[str, float | None]] = {}
    for pair in combinations(range(count), 2):
        first, second = (arrays[i] for i in pair)
        by_pair[pair] = pair_metrics(first, second, form=form, threshold=threshold)
        difference = row_differences(first, second) if codes_of else np.empty(0)
        for name, (labels, codes) in codes_of.items():
            slice_sums[name][pair] = np.bincount(codes, weights=difference, minlength=len(labels))
    metrics = summarise_pairs(by_pair, count, confidence=confidence)
    runs = [_run_row(name, p, targets, form=form) for name, p in zip(names, arrays, strict=True)]
    for metric in [key for key in runs[0] if key != "name"]:
        values = [run[metric] for run in runs if run[metric] is not None]
        metrics[metric] = float(np.mean(values)) if values else None
        metrics[f"{metric}_interval"] = within_range(metric, mean_interval(values, confidence=confidence))
    return ChurnResult(
        names=names,
        rows=rows,
        form=form,
        definitions=definitions(form, threshold=threshold),
        metrics=metrics,
        pairs=[{"first": names[i], "second": names[j], **values} for (i, j), values in by_pair.items()],
        runs=runs,
        slices={
            name: slice_rows(labels, codes, slice_sums[name], num_runs=count, confidence=confidence)
            for name, (labels, codes) in codes_of.items()
        },
        notes=["Two retrains give no interval: train a third seed."] if count == 2 else [],
    )


def summarise_pairs(
    by_pair: Mapping[tuple[int, int], Mapping[str, float | None]], num_runs: int, *, confidence: float = 0.95
) -> dict[str, Any]:
    """Each of PAIR_METRICS over all pairs, with `<name>_interval` kept inside the metric's range."""
    metrics: dict[str, Any] = {}
    for metric in PAIR_METRICS:
        values = {pair: row.get(metric) for pair, row in by_pair.items()}
        known = {pair: value for pair, value in values.items() if value is not None}
        if len(known) < len(values):
            metrics |= {metric: None, f"{metric}_interval": None}
            continue
        value, interval = mean_over_pairs(known, num_runs, confidence=confidence)
        metrics[metric] = value
        metrics[f"{metric}_interval"] = within_range(metric, interval)
    return metrics


def _check(arrays: list[np.ndarray], names: list[str], targets: np.ndarray | None) -> None:
    """Refuse what is not two or more aligned arrays of probabilities."""
    if len(arrays) < 2:
        raise UserError(
            f"churn compares at least two retrains of one system, got {len(arrays)}. "
            "Train another with the same settings and another seed."
        )
    if len(names) != len(arrays):
        raise ValueError(f"{len(arrays)} predictions, {len(names)} names")
    for name, p in zip(names, arrays, strict=True):
        if p.ndim not in (1, 2) or len(p) == 0:
            raise UserError(f"{name}: expected probabilities of shape [rows] or [rows, classes], got {list(p.shape)}.")
        if p.shape != arrays[0].shape:
            raise UserError(
                f"{name} predicts {list(p.shape)} values, {names[0]} {list(arrays[0].shape)}. "
                "Retrains are compared on the same rows in the same order."
            )
        wrong = ~((p >= 0) & (p <= 1))
        if wrong.any():
            where = int(np.argmax(wrong.reshape(len(p), -1).any(axis=1)))
            raise UserError(
                f"{name}: not a probability in {int(wrong.sum())} places, the first in row {where} "
                f"(value {p[where] if p.ndim == 1 else p[where][wrong[where]][0]}). "
                "Expected numbers from 0 to 1, not logits."
            )
    if targets is not None and len(targets) != len(arrays[0]):
        raise UserError(f"{len(targets)} targets for {len(arrays[0])} rows of predictions.")


def _run_row(name: str, p: np.ndarray, targets: np.ndarray | None, *, form: Form) -> dict[str, Any]:
    if targets is None:
        return {"name": name}
    if form is Form.label:
        return {"name": name, "cross_entropy": float(loss_of_correct(p).mean()), "calibration_error": None}
    results = binary_results(p, targets) if form is Form.binary else multiclass_results(p, targets)
    metric = "log_loss" if form is Form.binary else "cross_entropy"
    return {"name": name, metric: results[metric], "calibration_error": results["calibration_error"]}
