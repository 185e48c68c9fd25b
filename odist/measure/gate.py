"""A release gate: how far a new model's predictions may move from those of the released one.

Old and new play different parts, unlike the retrains of odist.measure.churn: which way predictions move counts, and what
the movement costs where labels are known (the measures: odist.measure.gate_measures). A hash of a row's name or cluster
decides its block. Rows pass by twice, in pieces of any size, and nothing grows with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from odist.errors import UserError
from odist.measure.churn import Form
from odist.measure.gate_measures import MEASURES, NUM_BLOCKS, BlockSums, Measures, Shift, columns_of, measures_of
from odist.measure.intervals import Interval
from odist.measure.keyed_parts import hashed
from odist.measure.pairing import Pairs
from odist.measure.streamed_slices import SliceValues

ALL_ROWS = "all rows"
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
    shift = Shift()
    values = {name: SliceValues(name) for name in slices}
    for piece in rows():
        shift.add(piece)
        for name, own in values.items():
            own.see(_slice_of(piece, name), names=piece.names)
    if not shift.rows:
        raise UserError(f"{names[0]}: holds no rows.")
    for own in values.values():
        own.settle()
    measures = measures_of(form, labelled=shift.labelled)
    _check_limits(limits, measures, form=form, labelled=shift.labelled)
    whole, sliced = BlockSums(1), {name: BlockSums(len(own.labels)) for name, own in values.items()}
    for piece in rows():
        columns = columns_of(piece, shift.mean, form=form, threshold=threshold, labelled=shift.labelled)
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
