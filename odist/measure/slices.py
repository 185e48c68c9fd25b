"""Slices of the rows that churn is repeated within: tenths of the prediction or of the order, labels, other columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from odist.measure.intervals import mean_over_pairs, within_range

LARGEST_NUMBER_OF_SLICES = 50


def coded(values: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Distinct values, and each row's index [rows] into them.

    values: [rows]. Numbers of more than twenty values become tenths; the rarest values beyond fifty become `other`.
    """
    if values.dtype.kind == "f" and len(np.unique(values[~np.isnan(values)])) > 20:
        values = _tenths(values)
    if values.dtype.kind == "O":
        values = np.array([str(value) for value in values])
    distinct, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) > LARGEST_NUMBER_OF_SLICES:
        kept = np.sort(np.argsort(-counts, kind="stable")[: LARGEST_NUMBER_OF_SLICES - 1])
        place = np.full(len(distinct), len(kept))
        place[kept] = np.arange(len(kept))
        return [*distinct[kept].tolist(), "other"], place[codes]
    return distinct.tolist(), codes


def slice_rows(
    labels: list[Any],
    codes: np.ndarray,
    sums: Mapping[tuple[int, int], np.ndarray],
    *,
    num_runs: int,
    confidence: float,
) -> list[dict[str, Any]]:
    """The churn within each value of a slice: value, rows, mean_abs_difference and its interval.

    labels, codes: as `coded` gives them; sums: pair of runs -> sum of the row differences within each value
    """
    counts = np.bincount(codes, minlength=len(labels))
    rows = []
    for index, label in enumerate(labels):
        means = {pair: float(of_pair[index] / counts[index]) for pair, of_pair in sums.items()}
        value, interval = mean_over_pairs(means, num_runs, confidence=confidence)
        interval = within_range("mean_abs_difference", interval)
        rows.append(
            {
                "value": label,
                "rows": int(counts[index]),
                "mean_abs_difference": value,
                "mean_abs_difference_interval": interval,
            }
        )
    return rows


def _tenths(values: np.ndarray) -> np.ndarray:
    """Tenth 1 to 10 of each row by rising value; equal values in row order."""
    tenth = np.empty(len(values), dtype=np.int64)
    tenth[np.argsort(values, kind="stable")] = np.arange(len(values)) * 10 // len(values) + 1
    return tenth


def built_in_slices(predictions: Sequence[np.ndarray], targets: np.ndarray | None) -> dict[str, np.ndarray]:
    """Slices that need no further column: decile, position, and label when targets are known.

    decile: tenths of the mean prediction over retrains (with classes, of its largest class), 1 the lowest
    position: tenths of the row order, which is time where the split keeps the order of the file
    """
    mean = np.mean(np.stack(predictions), axis=0)
    rows = len(mean)
    slices = {"decile": _tenths(mean if mean.ndim == 1 else mean.max(axis=1))}
    if targets is not None:
        slices["label"] = np.asarray(targets)
    return slices | {"position": np.arange(rows) * 10 // rows + 1}
