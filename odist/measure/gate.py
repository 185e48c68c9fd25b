"""A release gate: how far a new model's predictions may move from those of the released one.

Old and new play different parts, unlike the retrains of odist.measure.churn: which way predictions move counts, and what
the movement costs where labels are known. Every measure is a function of means over rows, so intervals come from a
bootstrap over the sums of blocks of rows, whatever the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from odist.errors import UserError
from odist.measure.churn import Form, row_differences, without_shift
from odist.measure.intervals import Interval
from odist.measure.slices import coded

NUM_BLOCKS = 1000  # rows or clusters beyond that share blocks at random
NUM_DRAWS = 2000
SMALLEST_PROBABILITY = 1e-12
ALL_ROWS = "all rows"

# Measure -> what it is. Those with a direction are limited on their absolute value.
MEASURES = {
    "mean_abs_difference": "mean over rows of |new - old|, of several classes the total variation",
    "churn_without_shift": "the same after old and new have given up their mean difference in logits",
    "root_mean_square": "root of the mean square of the row differences",
    "flips": "share of rows whose decision changes",
    "flips_up": "share of rows that become positive",
    "flips_down": "share of rows that become negative",
    "mean_shift": "mean of new - old",
    "calibration_shift": "|mean prediction - mean label|, of new less that of old",
    "loss_increase": "mean loss of new less that of old, in nats",
}
BOTH_WAYS = ("mean_shift",)


@dataclass(frozen=True)
class Limit:
    """The most that a measure may be. of_baseline: `value` times what retraining alone moves"""

    measure: str
    value: float
    of_baseline: bool = False


@dataclass(frozen=True)
class Check:
    """One limit on all rows or within one value of a slice."""

    measure: str
    where: str
    rows: int
    value: float
    interval: Interval
    limit: float

    @property
    def exceeded(self) -> bool:
        """Whether the measured value, not only the end of its interval, is above the limit."""
        return (abs(self.value) if self.measure in BOTH_WAYS else self.value) > self.limit


@dataclass(frozen=True)
class GateResult:
    """What moved and which limits it exceeds. measures: name -> value and interval, on all rows"""

    old: str
    new: str
    rows: int
    measures: dict[str, tuple[float, Interval]]
    checks: list[Check]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not any(check.exceeded for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        measured = {name: {"value": value, "interval": interval} for name, (value, interval) in self.measures.items()}
        checks = [{**asdict(check), "exceeded": check.exceeded} for check in self.checks]
        return {
            "old": self.old,
            "new": self.new,
            "rows": self.rows,
            "passed": self.passed,
            "measures": measured,
            "checks": checks,
            "notes": self.notes,
        }


def parse_limit(text: str) -> Limit:
    """`flips=0.01`, or `flips=2x` for twice what the baseline has. UserError for anything else."""
    measure, separator, value = text.partition("=")
    if measure not in MEASURES:
        raise UserError(f"--max {text}: no measure {measure!r}. Choose among: {', '.join(MEASURES)}.")
    try:
        number = float(value.removesuffix("x"))
    except ValueError:
        number = math.nan
    if not separator or not math.isfinite(number) or number < 0:
        raise UserError(
            f"--max {text}: expected a number of 0 or more, or one followed by x for so many times the baseline's. "
            f"Type --max {measure}=0.02 or --max {measure}=2x."
        )
    return Limit(measure, number, of_baseline=value.endswith("x"))


def limits_with(limits: Sequence[Limit], baseline: Mapping[str, Any] | None) -> list[Limit]:
    """The limits as plain numbers.

    baseline: what `odist churn --json` printed for retrains of the released system; UserError where it is missing or
    lacks a measure
    """
    found = []
    for limit in limits:
        value = limit.value
        if limit.of_baseline:
            known = None if baseline is None else baseline.get(limit.measure)
            if not isinstance(known, int | float):
                what = "no --baseline was given" if baseline is None else "the --baseline file has no such measure"
                raise UserError(
                    f"--max {limit.measure}={limit.value:g}x: {what}. Make one: odist churn RETRAIN RETRAIN --json > churn.json"
                )
            value *= known
        found.append(Limit(limit.measure, value))
    return found


def gate(
    old: np.ndarray,
    new: np.ndarray,
    *,
    limits: Sequence[Limit],
    form: Form,
    targets: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    slices: Mapping[str, np.ndarray] | None = None,
    threshold: float = 0.5,
    confidence: float = 0.95,
    names: tuple[str, str] = ("old", "new"),
) -> GateResult:
    """Measure how far `new` moved from `old` on the same rows, and judge it by limits.

    old, new: probabilities [rows] or [rows, classes]; targets: [rows] labels; weights: [rows] of 0 or more
    limits: plain numbers (`limits_with`), on all rows and within each value of every slice
    clusters: [rows] values, such as a user's id: rows of one are drawn together; None: rows are independent
    slices: name -> [rows] values; threshold: of a binary decision
    Intervals are percentiles of a bootstrap (Efron and Tibshirani 1993, section 13.3) over at most NUM_BLOCKS blocks of
    rows or clusters; the same input gives the same intervals.
    Raises UserError for a limit on a measure that these predictions do not have.
    """
    columns, measures = _columns(old, new, targets, form=form, threshold=threshold)
    for limit in limits:
        if limit.measure not in measures:
            raise UserError(
                f"--max {limit.measure}: not known of these predictions ({form.value}"
                f"{'' if targets is not None else ', no labels'}). Choose among: {', '.join(measures)}."
            )
    weights = np.ones(len(old)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(old),) or not (weights >= 0).all() or not weights.sum() > 0:
        raise UserError("the weights of rows must be numbers of 0 or more, one a row, and not all 0.")
    blocks = _blocks(len(old) if clusters is None else clusters)

    def measured(rows: np.ndarray | None) -> dict[str, tuple[float, Interval]]:
        return _bootstrapped(columns, measures, weights, blocks, rows=rows, confidence=confidence)

    whole = measured(None)
    checks = [Check(one.measure, ALL_ROWS, len(old), *whole[one.measure], one.value) for one in limits]
    for name, values in (slices or {}).items():
        labels, codes = coded(np.asarray(values))
        for index, label in enumerate(labels):
            rows = codes == index
            if weights[rows].sum() > 0:
                own = measured(rows)
                where = f"{name} {label}"
                checks += [Check(one.measure, where, int(rows.sum()), *own[one.measure], one.value) for one in limits]
    return GateResult(*names, len(old), whole, checks)


Measures = dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]]


def _columns(
    old: np.ndarray, new: np.ndarray, targets: np.ndarray | None, *, form: Form, threshold: float
) -> tuple[dict[str, np.ndarray], Measures]:
    """What is averaged over rows, and each measure as a function of those means."""
    difference = row_differences(old, new)
    columns = {"distance": difference, "square": difference**2}
    measures: Measures = {
        "mean_abs_difference": lambda mean: mean["distance"],
        "root_mean_square": lambda mean: np.sqrt(mean["square"]),
    }
    if form is not Form.label:
        columns["steady"] = row_differences(*without_shift(old, new))
        measures["churn_without_shift"] = lambda mean: mean["steady"]
        before, after = (p.argmax(axis=1) if p.ndim == 2 else p > threshold for p in (old, new))
        columns["flip"] = (before != after).astype(np.float64)
        measures["flips"] = lambda mean: mean["flip"]
    if form is Form.binary:
        columns |= {"up": (after & ~before).astype(np.float64), "down": (before & ~after).astype(np.float64)}
        columns |= {"old": old, "new": new}
        measures |= {"flips_up": lambda mean: mean["up"], "flips_down": lambda mean: mean["down"]}
        measures["mean_shift"] = lambda mean: mean["new"] - mean["old"]
    if targets is not None:
        columns["loss"] = _losses(new, targets, form=form) - _losses(old, targets, form=form)
        measures["loss_increase"] = lambda mean: mean["loss"]
        if form is Form.binary:
            columns["label"] = np.asarray(targets, dtype=np.float64)
            measures["calibration_shift"] = lambda mean: (
                np.abs(mean["new"] - mean["label"]) - np.abs(mean["old"] - mean["label"])
            )
    return columns, {name: measures[name] for name in MEASURES if name in measures}


def _losses(p: np.ndarray, targets: np.ndarray, *, form: Form) -> np.ndarray:
    """Minus the logarithm of the label's probability [rows], in nats."""
    if form is Form.label:
        of_label = p
    elif form is Form.binary:
        of_label = np.where(targets > 0.5, p, 1 - p)
    else:
        of_label = p[np.arange(len(p)), targets.astype(np.int64)]
    return np.asarray(-np.log(np.maximum(of_label, SMALLEST_PROBABILITY)))


def _blocks(rows_or_clusters: int | np.ndarray) -> np.ndarray:
    """The block of each row [rows]: rows of one cluster share one, and NUM_BLOCKS are enough for an interval."""
    shuffle = np.random.default_rng(0)
    if isinstance(rows_or_clusters, int):
        rows = np.arange(rows_or_clusters)
    else:
        _, rows = np.unique(np.asarray(rows_or_clusters).astype(str), return_inverse=True)
    order = shuffle.permutation(int(rows.max()) + 1 if len(rows) else 0)
    return np.asarray(order[rows] % NUM_BLOCKS)


def _bootstrapped(
    columns: Mapping[str, np.ndarray],
    measures: Measures,
    weights: np.ndarray,
    blocks: np.ndarray,
    *,
    rows: np.ndarray | None,
    confidence: float,
) -> dict[str, tuple[float, Interval]]:
    """Every measure on the chosen rows (None: all) with its interval."""
    if rows is not None:
        columns = {name: values[rows] for name, values in columns.items()}
        weights, blocks = weights[rows], blocks[rows]
    _, blocks = np.unique(blocks, return_inverse=True)
    total = np.bincount(blocks, weights=weights)
    sums = {name: np.bincount(blocks, weights=weights * values) for name, values in columns.items()}
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
