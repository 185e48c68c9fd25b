"""What a release gate measures on rows of old and new predictions, as means over blocks of rows.

Every measure is a function of means over rows, and intervals come from a bootstrap over the sums of blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from odist.measure.churn import Form, centred_logits, row_differences, shifted
from odist.measure.intervals import Interval
from odist.measure.pairing import Pairs

NUM_BLOCKS = 1000  # rows and clusters share blocks at random
NUM_DRAWS = 2000
SMALLEST_PROBABILITY = 1e-12

# Measure -> what it is. Those with a direction are limited on their absolute value.
MEASURES = {
    "mean_abs_difference": "mean over rows of |new - old|, of several classes the total variation",
    "churn_without_shift": "the same after old and new have given up their mean difference in logits",
    "root_mean_square": "root of the mean square of the row differences",
    "relative_difference": "mean of 2 |new - old| / (new + old), of several classes over all of them",
    "flips": "share of rows whose decision changes",
    "flips_up": "share of rows that become positive",
    "flips_down": "share of rows that become negative",
    "negative_flips": "share of rows that the old one decided right and the new one decides wrong",
    "positive_flips": "share of rows that the old one decided wrong and the new one decides right",
    "mean_shift": "mean of new - old",
    "calibration_shift": "|mean prediction - mean label| of new less that of old, of several classes |mean confidence - accuracy|",
    "loss_increase": "mean loss of new less that of old, in nats",
}

Columns = dict[str, np.ndarray]
Measures = dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]]


class Shift:
    """The mean difference in logits, old less new, and what else the first pass counts."""

    def __init__(self) -> None:
        self.rows, self.labelled = 0, True
        self._sum: np.ndarray | float = 0.0

    def add(self, piece: Pairs) -> None:
        self.rows += len(piece.old)
        self.labelled = self.labelled and piece.targets is not None
        self._sum = self._sum + (centred_logits(piece.old) - centred_logits(piece.new)).sum(axis=0)

    @property
    def mean(self) -> np.ndarray:
        return np.asarray(self._sum / self.rows)


def columns_of(piece: Pairs, mean_shift: np.ndarray, *, form: Form, threshold: float, labelled: bool) -> Columns:
    """What is averaged over rows, each [n]."""
    old, new = piece.old, piece.new
    difference, total = row_differences(old, new), old + new
    relative = np.divide(2 * np.abs(old - new), total, out=np.zeros_like(total), where=total > 0)
    columns = {"distance": difference, "square": difference**2}
    columns["relative"] = relative if relative.ndim == 1 else relative.mean(axis=1)
    if form is not Form.label:
        columns["steady"] = row_differences(*shifted(old, new, mean_shift))
        before, after = (p.argmax(axis=1) if p.ndim == 2 else p > threshold for p in (old, new))
        columns["flip"] = _counted(before != after)
    if form is Form.binary:
        columns |= {"up": _counted(after & ~before), "down": _counted(before & ~after), "old": old, "new": new}
    if labelled:
        targets = np.asarray(piece.targets)
        columns["loss"] = _losses(new, targets, form=form) - _losses(old, targets, form=form)
        if form is not Form.label:
            wanted = targets > 0.5 if form is Form.binary else targets
            columns |= {"lost": _counted((before == wanted) & (after != wanted))}
            columns |= {"gained": _counted((before != wanted) & (after == wanted))}
        if form is Form.binary:
            columns["label"] = targets.astype(np.float64)
        elif form is Form.classes:
            columns |= {"old": old.max(axis=1), "new": new.max(axis=1)}
            columns |= {"old right": _counted(before == targets), "new right": _counted(after == targets)}
    return columns


def _counted(which: np.ndarray) -> np.ndarray:
    return np.asarray(which, dtype=np.float64)


def measures_of(form: Form, *, labelled: bool) -> Measures:
    """Each measure that these predictions have, as a function of the means of `columns_of`."""
    found: Measures = {
        "mean_abs_difference": lambda mean: mean["distance"],
        "root_mean_square": lambda mean: np.sqrt(mean["square"]),
        "relative_difference": lambda mean: mean["relative"],
    }
    if form is not Form.label:
        found |= {"churn_without_shift": lambda mean: mean["steady"], "flips": lambda mean: mean["flip"]}
    if form is Form.binary:
        found |= {"flips_up": lambda mean: mean["up"], "flips_down": lambda mean: mean["down"]}
        found["mean_shift"] = lambda mean: mean["new"] - mean["old"]
    if labelled:
        found["loss_increase"] = lambda mean: mean["loss"]
        if form is not Form.label:
            found |= {"negative_flips": lambda mean: mean["lost"], "positive_flips": lambda mean: mean["gained"]}
            before, after = ("label", "label") if form is Form.binary else ("old right", "new right")
            found["calibration_shift"] = lambda mean: (
                np.abs(mean["new"] - mean[after]) - np.abs(mean["old"] - mean[before])
            )
    return {name: found[name] for name in MEASURES if name in found}


def _losses(p: np.ndarray, targets: np.ndarray, *, form: Form) -> np.ndarray:
    """Minus the logarithm of the label's probability [rows], in nats."""
    if form is Form.label:
        of_label = p
    elif form is Form.binary:
        of_label = np.where(targets > 0.5, p, 1 - p)
    else:
        of_label = p[np.arange(len(p)), targets.astype(np.int64)]
    return np.asarray(-np.log(np.maximum(of_label, SMALLEST_PROBABILITY)))


class BlockSums:
    """Weighted sums of columns over the rows of every block, within each of `num_codes` values of a slice."""

    def __init__(self, num_codes: int) -> None:
        self.num_codes = num_codes
        self._sums: dict[str, np.ndarray] = {}
        self._weights = np.zeros((num_codes, NUM_BLOCKS))
        self._rows = np.zeros((num_codes, NUM_BLOCKS), dtype=np.int64)

    def add(self, columns: Columns, weights: np.ndarray, blocks: np.ndarray, codes: np.ndarray) -> None:
        """Add rows. weights, blocks, codes: [n]"""
        place, size = codes * NUM_BLOCKS + blocks, self.num_codes * NUM_BLOCKS
        self._rows += np.bincount(place, minlength=size).reshape(self._rows.shape)
        self._weights += np.bincount(place, weights=weights, minlength=size).reshape(self._rows.shape)
        for name, values in columns.items():
            own = np.bincount(place, weights=weights * values, minlength=size).reshape(self._rows.shape)
            self._sums[name] = self._sums.get(name, 0.0) + own

    def weight(self, code: int) -> float:
        return float(self._weights[code].sum())

    def rows(self, code: int) -> int:
        return int(self._rows[code].sum())

    def bootstrapped(self, code: int, measures: Measures, *, confidence: float) -> dict[str, tuple[float, Interval]]:
        """Every measure with its interval, from draws of blocks with replacement."""
        filled = self._rows[code] > 0
        total = self._weights[code][filled]
        sums = {name: values[code][filled] for name, values in self._sums.items()}
        draws = np.random.default_rng(0).multinomial(len(total), np.full(len(total), 1 / len(total)), size=NUM_DRAWS)
        drawn_total = draws @ total
        kept = drawn_total > 0
        drawn = {name: (draws @ values)[kept] / drawn_total[kept] for name, values in sums.items()}
        means = {name: np.asarray(values.sum() / total.sum()) for name, values in sums.items()}
        tail = 50 * (1 - confidence)
        found = {}
        for name, measure in measures.items():
            low, high = np.percentile(measure(drawn), [tail, 100 - tail])
            found[name] = (float(measure(means)), [float(low), float(high)])
        return found
