"""A release gate: how far a new model's predictions may move from those of the released one.

Old and new play different parts, unlike the retrains of odist.measure.churn: which way predictions move counts, and what
the movement costs where labels are known. Every measure is a function of means over rows, and intervals come from a
bootstrap over the sums of blocks of rows, which a hash of a row's name or cluster decides. So rows pass by twice, in pieces
of any size, and nothing grows with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from odist.errors import UserError
from odist.measure.churn import Form, centred_logits, row_differences, shifted
from odist.measure.intervals import Interval
from odist.measure.pairing import Pairs, hashed
from odist.measure.streamed_slices import SliceValues

NUM_BLOCKS = 1000  # rows and clusters share blocks at random
NUM_DRAWS = 2000
SMALLEST_PROBABILITY = 1e-12
ALL_ROWS = "all rows"

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
class SliceMeasures:
    """What moved within one value of a slice."""

    value: Any
    rows: int
    measures: dict[str, tuple[float, Interval]]


@dataclass(frozen=True)
class GateResult:
    """What moved and which limits it exceeds.

    measures: name -> value and interval, on all rows; slices: name -> the same within each value
    """

    old: str
    new: str
    rows: int
    measures: dict[str, tuple[float, Interval]]
    checks: list[Check]
    slices: dict[str, list[SliceMeasures]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not any(check.exceeded for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        slices = {
            name: [{"value": own.value, "rows": own.rows, "measures": _as_json(own.measures)} for own in within]
            for name, within in self.slices.items()
        }
        checks = [{**asdict(check), "exceeded": check.exceeded} for check in self.checks]
        return {
            "old": self.old,
            "new": self.new,
            "rows": self.rows,
            "passed": self.passed,
            "measures": _as_json(self.measures),
            "slices": slices,
            "checks": checks,
            "notes": self.notes,
        }


def _as_json(measures: Mapping[str, tuple[float, Interval]]) -> dict[str, Any]:
    return {name: {"value": value, "interval": interval} for name, (value, interval) in measures.items()}


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


Pass = Callable[[], Iterable[Pairs]]  # all rows in pieces, the same ones at every call


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
    """Measure how far `new` moved from `old` on the same rows, and judge it by limits; see `gate_rows`.

    old, new: probabilities [rows] or [rows, classes]; targets: [rows] labels; weights: [rows] of 0 or more
    clusters: [rows] values; slices: name -> [rows] values
    """
    given: dict[str, np.ndarray] = {name: np.asarray(values) for name, values in (slices or {}).items()}
    options: dict[str, str | None] = {"weight": None, "cluster": None}
    for option, values in (("weight", weights), ("cluster", clusters)):
        if values is not None:
            options[option] = f"{option} of gate"
            given[f"{option} of gate"] = np.asarray(values)
    rows = np.arange(len(old))
    pairs = Pairs(np.asarray(old), np.asarray(new), rows, rows, targets, given)
    return gate_rows(
        lambda: [pairs],
        limits=limits,
        form=form,
        slices=list(slices or {}),
        threshold=threshold,
        confidence=confidence,
        names=names,
        weight=options["weight"],
        cluster=options["cluster"],
    )


def gate_rows(
    rows: Pass,
    *,
    limits: Sequence[Limit],
    form: Form,
    weight: str | None = None,
    cluster: str | None = None,
    slices: Sequence[str] = (),
    threshold: float = 0.5,
    confidence: float = 0.95,
    names: tuple[str, str] = ("old", "new"),
) -> GateResult:
    """Measure how far new predictions moved from the old ones, and judge it by limits.

    rows: gives all rows in pieces; is called twice
    limits: plain numbers (`limits_with`), on all rows and within each value of every slice
    weight: column of the rows' weights; cluster: column, such as a user's id: rows of one are drawn together
    slices: columns, or decile, label and position as in `odist.measure.slices`; threshold: of a binary decision
    Intervals are percentiles of a bootstrap (Efron and Tibshirani 1993, section 13.3) over NUM_BLOCKS blocks of rows or
    clusters; the same input gives the same intervals, however it is cut into pieces.
    Raises UserError for a limit on a measure that these predictions do not have.
    """
    shift = _Shift()
    values = {name: SliceValues(name) for name in slices}
    for piece in rows():
        shift.add(piece)
        for name, own in values.items():
            own.see(_slice_of(piece, name), names=piece.names)
    if not shift.rows:
        raise UserError(f"{names[0]}: holds no rows.")
    for own in values.values():
        own.settle()
    measures = _measures(form, labelled=shift.labelled)
    _check_limits(limits, measures, form=form, labelled=shift.labelled)
    whole, sliced = _BlockSums(1), {name: _BlockSums(len(own.labels)) for name, own in values.items()}
    for piece in rows():
        columns = _columns(piece, shift.mean, form=form, threshold=threshold, labelled=shift.labelled)
        weights = _weights(piece, weight)
        blocks = (hashed(piece.names if cluster is None else piece.columns[cluster]) % np.uint64(NUM_BLOCKS)).astype(
            np.int64
        )
        whole.add(columns, weights, blocks, np.zeros(len(blocks), dtype=np.int64))
        for name, own in values.items():
            codes = own.codes(_slice_of(piece, name), rows=piece.rows, total=shift.rows)
            sliced[name].add(columns, weights, blocks, codes)
    if not whole.weight(0) > 0:
        raise UserError("the weights of rows are all 0.")
    found = whole.bootstrapped(0, measures, confidence=confidence)
    checks = [Check(one.measure, ALL_ROWS, shift.rows, *found[one.measure], one.value) for one in limits]
    within: dict[str, list[SliceMeasures]] = {name: [] for name in values}
    for name, own in values.items():
        for code, label in enumerate(own.labels):
            if sliced[name].weight(code) > 0:
                inside = sliced[name].bootstrapped(code, measures, confidence=confidence)
                where, count = f"{name} {label}", sliced[name].rows(code)
                within[name].append(SliceMeasures(label, count, inside))
                checks += [Check(one.measure, where, count, *inside[one.measure], one.value) for one in limits]
    return GateResult(*names, shift.rows, found, checks, within)


Columns = dict[str, np.ndarray]
Measures = dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]]


class _Shift:
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


def _slice_of(piece: Pairs, name: str) -> np.ndarray:
    """What a slice divides the rows by, [n]."""
    if name in piece.columns:
        return piece.columns[name]
    if name == "decile":
        mean = (piece.old + piece.new) / 2
        return np.asarray(mean if mean.ndim == 1 else mean.max(axis=1))
    if name == "position":
        return piece.rows
    return np.asarray(piece.targets)


def _weights(piece: Pairs, weight: str | None) -> np.ndarray:
    if weight is None:
        return np.ones(len(piece.old))
    weights = np.asarray(piece.columns[weight], dtype=np.float64)
    if not (weights >= 0).all():
        raise UserError("the weights of rows must be numbers of 0 or more, one a row, and not all 0.")
    return weights


def _check_limits(limits: Sequence[Limit], measures: Measures, *, form: Form, labelled: bool) -> None:
    for limit in limits:
        if limit.measure not in measures:
            raise UserError(
                f"--max {limit.measure}: not known of these predictions ({form.value}"
                f"{'' if labelled else ', no labels'}). Choose among: {', '.join(measures)}."
            )


def _columns(piece: Pairs, mean_shift: np.ndarray, *, form: Form, threshold: float, labelled: bool) -> Columns:
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


def _measures(form: Form, *, labelled: bool) -> Measures:
    """Each measure that these predictions have, as a function of the means of `_columns`."""
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


class _BlockSums:
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
