"""How large what a claim compares is: a ratio for churn and steps, a difference for losses and accuracies, and its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from odist.claims.claim import Claim
from odist.claims.quantities import AGAINST, higher_is_better, unit_of
from odist.claims.retrains import Retrains
from odist.claims.table import estimate
from odist.claims.verdicts import Verdict, common_seeds
from odist.measure.churn import PAIR_METRICS
from odist.measure.intervals import Interval, jackknife, within_range

RATIOS = ("churn", "steps", "ratios")  # kinds whose value is left / right; of the others it is left - right
POINTS = 100.0  # percentage points of a fraction


@dataclass(frozen=True)
class Effect:
    """What a claim compares, in numbers.

    kind: `churn`, `steps`, `accuracy`, the metric of a loss, `ratios` for a claim that compares two ratios, or `trend`
    boundaries: values at which the claim turns; unit: with a space before it
    """

    kind: str
    value: float
    interval: Interval | None
    boundaries: tuple[float, ...]
    unit: str

    @property
    def text(self) -> str:
        sign = self.kind not in RATIOS
        return estimate(self.value, self.interval, sign=sign) + self.unit


def kind_of(metric: str) -> str:
    if metric.removeprefix(AGAINST) in PAIR_METRICS:
        return "churn"
    if metric.startswith("steps_to_"):
        return "steps"
    return "accuracy" if higher_is_better(metric) else metric


def effect_of(verdict: Verdict, *, sides: Sequence[Retrains | None]) -> Effect | None:
    """The effect behind a verdict, over the seeds that all sides have; None where nothing was compared.

    sides: of the claim's left, right and, if it has them, its `versus`
    """
    claim, present = verdict.claim, [side for side in sides if side is not None]
    if verdict.difference is None or len(present) < len(sides):
        return None
    kind, seeds = kind_of(claim.metric) if claim.versus is None else "ratios", common_seeds(present)
    kind = "trend" if claim.along else kind
    if kind in RATIOS:
        statistics = [side.statistic(claim.metric, seeds) for side in present]
        value, interval = jackknife(_ratio(statistics), len(seeds))
        bounded = any(side.num_censored(claim.metric, seeds) for side in present)
        unit = " times" if kind != "steps" else " times the steps"
        return Effect(
            kind, value, within_range("ratio", interval), (claim.factor,), f"{unit} (a bound)" if bounded else unit
        )
    factor = POINTS if kind == "accuracy" else 1.0
    boundaries = {"<": (-claim.margin,), ">": (claim.margin,)}.get(claim.relation, (-claim.margin, claim.margin))
    interval = None if verdict.interval is None else [factor * bound for bound in verdict.interval]
    unit = " points" if kind == "accuracy" else unit_of(claim.metric)
    return Effect(kind, factor * verdict.difference, interval, tuple(factor * bound for bound in boundaries), unit)


def _ratio(statistics: Sequence[Callable[[list[int]], float]]) -> Callable[[list[int]], float]:
    def ratio(places: list[int]) -> float:
        left, right, *versus = (statistic(places) for statistic in statistics)
        return left / right / (versus[0] / versus[1]) if versus else left / right

    return ratio


def names_in(claim: Claim) -> tuple[str, ...]:
    """The systems that a claim compares, its left one first."""
    return claim.systems
