"""What the records say of each claim: a verdict, by the interval of a difference and its p adjusted for the page.

A run that never reached a target is a bound on its side, and a claim is decided where the bound decides it. The primary
claims of a recipe, fixed before its runs, are one family of Holm's, the other claims of the page another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from odist.claims.claim import FAILS, HOLDS, OPEN, UNTESTED, Claim
from odist.claims.recipe import Recipe
from odist.claims.retrains import Retrains
from odist.measure.churn import PAIR_METRICS
from odist.measure.intervals import Estimate, Interval, holm, jackknife, jackknife_estimate, within_range

Shown = tuple[float | None, Interval | None]
LEVEL = 0.05
ENOUGH_REACH = 0.5  # of a side's models: below it nothing bounds the steps of the others from above


@dataclass(frozen=True)
class Bound:
    """How many of a system's models never reached the target that is compared."""

    system: str
    never: int
    models: int


@dataclass(frozen=True)
class Verdict:
    """A claim decided: left - factor * right with its interval, over so many common seeds.

    p: of the boundary that decides the claim, two-sided; adjusted: by Holm for the other claims of its family
    bounds: sides whose numbers are lower bounds; censored: whether they alone leave the claim open
    ratios: of a claim with `versus`, left / right and versus[0] / versus[1], each with its interval; the
        difference is theirs
    required: of a claim that is not tested, the verdict on the claim that it requires; None where the variant lacks it
    widest: of a claim that is not tested as its margin tells nothing apart, the largest difference of two other systems
    near: of a claim `within` a margin, the difference of the reference from the right side, where the margin is hardly
        less
    """

    claim: Claim
    verdict: str
    difference: float | None
    interval: Interval | None
    num_seeds: int
    p: float | None = None
    adjusted: float | None = None
    bounds: tuple[Bound, ...] = ()
    censored: bool = False
    ratios: tuple[Shown, Shown] | None = None
    required: str | None = None
    widest: float | None = None
    near: float | None = None


def common_seeds(sides: Sequence[Retrains]) -> tuple[int, ...]:
    return tuple(seed for seed in sides[0].seeds if all(seed in side.seeds for side in sides[1:]))


def judge(claim: Claim, *, sides: Sequence[Retrains | None]) -> Verdict:
    """Decide a claim by itself, by the 95 % interval of its difference over the seeds that all sides have.

    sides: those of `claim.systems`; None for one without records
    The difference is left - factor * right, or left / right - factor * (versus[0] / versus[1]). A seed is left out of
    all sides at once (jackknife; for a plain metric this is the paired t interval). `holds` and `does not hold` need
    the interval wholly on one side; else `not resolved`. Fewer than three common seeds resolve nothing.
    """
    present = [side for side in sides if side is not None]
    seeds = common_seeds(present) if len(present) == len(sides) else ()
    if not seeds or not all(side.has(claim.metric, seeds) for side in present):
        return Verdict(claim, OPEN, None, None, len(seeds))
    names = claim.systems
    bounds = tuple(
        Bound(name, missed, side.num_copies(seeds))
        for name, side in dict(zip(names, present, strict=True)).items()
        if (missed := side.num_censored(claim.metric, seeds))
    )
    compared = _Comparison(claim, present, seeds)
    if claim.versus and not compared.has_ratios:
        return Verdict(claim, OPEN, None, None, len(seeds), bounds=bounds)
    shown = compared.estimate(longest=())
    interval = shown.interval()
    verdict, p, censored = verdict_of(claim, interval), shown.p_value(_distance(claim, shown.value)), False
    if bounds:
        verdict, p, censored = _decided_by_bounds(claim, compared, shown)
    return Verdict(claim, verdict, shown.value, interval, len(seeds), p, p, bounds, censored, compared.ratios())


class _Comparison:
    """The difference that a claim is about, with its sides counted at their horizon or at twice that."""

    def __init__(self, claim: Claim, sides: Sequence[Retrains], seeds: Sequence[int]) -> None:
        self.claim, self.sides, self.seeds = claim, sides, seeds
        # whether a larger number on this side makes the difference larger
        self.raises = (True, False, False, True)[: len(sides)] if not claim.along else (True,) * len(sides)
        self.shares = _shares(claim)

    def unbounded(self, *, raising: bool) -> bool:
        """Whether a censored side that moves the difference up (or down) has no upper bound."""
        for side, raises in zip(self.sides, self.raises, strict=True):
            missed = side.num_censored(self.claim.metric, self.seeds)
            if raises == raising and missed > (1 - ENOUGH_REACH) * side.num_copies(self.seeds):
                return True
        return False

    @property
    def has_ratios(self) -> bool:
        """Whether no ratio divides by zero, as it would with two retrains of equal bits."""
        places = range(len(self.seeds))
        smallest = (
            [list(pair) for pair in combinations(places, 2)]
            if self.claim.metric in PAIR_METRICS
            else [[i] for i in places]
        )
        below = [self.sides[i].statistic(self.claim.metric, self.seeds) for i in (1, 3)]
        return bool(smallest) and all(statistic(chosen) != 0 for statistic in below for chosen in smallest)

    def estimate(self, *, longest: Sequence[bool]) -> Estimate:
        """longest: the directions whose sides are counted at twice the horizon where they were censored."""
        statistics = [
            side.statistic(self.claim.metric, self.seeds, longest=raises in longest)
            for side, raises in zip(self.sides, self.raises, strict=True)
        ]
        factor = self.claim.factor

        def difference(places: list[int]) -> float:
            if self.claim.along:
                return sum(share * one(places) for share, one in zip(self.shares, statistics, strict=True))
            left, right, *versus = (statistic(places) for statistic in statistics)
            return left / right - factor * (versus[0] / versus[1]) if versus else left - factor * right

        return jackknife_estimate(difference, len(self.seeds))

    def ratios(self) -> tuple[Shown, Shown] | None:
        if self.claim.versus is None:
            return None
        left, right, *versus = (side.statistic(self.claim.metric, self.seeds) for side in self.sides)
        number = len(self.seeds)
        return _ratio(left, right, number), _ratio(versus[0], versus[1], number)


def _shares(claim: Claim) -> list[float]:
    """What the mean of each of the systems along an axis adds to the difference of the ends of their least-squares line."""
    places = [claim.along[name] for name in claim.systems] if claim.along else []
    if not places:
        return []
    middle = sum(places) / len(places)
    spread = sum((place - middle) ** 2 for place in places)
    length = claim.along[claim.left] - claim.along[claim.right]
    return [length * (place - middle) / spread for place in places]


def _ratio(above: Callable[[list[int]], float], below: Callable[[list[int]], float], number: int) -> Shown:
    value, interval = jackknife(lambda places: above(places) / below(places), number)
    return value, within_range("ratio", interval)


def _decided_by_bounds(claim: Claim, compared: _Comparison, shown: Estimate) -> tuple[str, float | None, bool]:
    """Verdict and p where some models never reached the target, and whether only that leaves the claim open.

    A censored model needed at least its horizon. Where most models of its side did get there, it is taken to need twice
    its horizon at most; where not, nothing bounds it. So the difference lies between two numbers of which either is known
    or not, and a verdict is tested at the end that speaks against it: what is decided there is decided of the truth.
    """
    against = {HOLDS: {"<": [True], ">": [False]}, FAILS: {"<": [False], ">": [True]}}
    ends = {
        raising: compared.estimate(longest=(raising,))
        for raising in (True, False)
        if not compared.unbounded(raising=raising)
    }
    for verdict, directions in against.items():
        needed = [ends.get(raising) for raising in directions.get(claim.relation, [True, False])]
        known = [end for end in needed if end is not None]
        if len(known) == len(needed) and all(verdict_of(claim, end.interval()) == verdict for end in known):
            values = [end.p_value(_distance(claim, end.value)) for end in known]
            return verdict, max(value for value in values if value is not None), False
    censored = verdict_of(claim, shown.interval()) != OPEN
    return OPEN, None if censored else shown.p_value(_distance(claim, shown.value)), censored


def _distance(claim: Claim, value: float) -> float:
    """How far the difference is from the nearest boundary of the claim."""
    boundary = {"<": -claim.margin, ">": claim.margin}.get(claim.relation)
    return abs(abs(value) - claim.margin) if boundary is None else abs(value - boundary)


def verdict_of(claim: Claim, interval: Interval | None) -> str:
    """holds, does not hold or not resolved, by the interval of left - factor * right alone.

    Whether higher is better plays no part: the relation says which side has to be the larger.
    """
    if interval is None:
        return OPEN
    low, high = interval
    if claim.relation == "within":
        if -claim.margin <= low and high <= claim.margin:
            return HOLDS
        return FAILS if low > claim.margin or high < -claim.margin else OPEN
    if claim.relation == ">":
        low, high = -high, -low
    if high < -claim.margin:
        return HOLDS
    return FAILS if low > -claim.margin else OPEN


def judge_all(recipe: Recipe, retrains: Mapping[tuple[str, str], Retrains], *, variant: str) -> list[Verdict]:
    """The verdict on every claim whose systems the variant has, the p-values of each family adjusted by Holm.

    `not tested` where the claim that it requires does not hold, and where a margin leaves nothing to fail.
    """
    known = recipe.systems_in(variant)
    verdicts = []
    for claim in recipe.claims:
        names = claim.systems
        if all(name in known for name in names):
            verdicts.append(judge(claim, sides=[retrains.get((variant, name)) for name in names]))
    here = {name: retrains[variant, name] for name in known if (variant, name) in retrains}
    verdicts = [_with_scale(verdict, here, reference=recipe.reference) for verdict in verdicts]
    verdicts = _adjusted(verdicts)
    alone = {verdict.claim.id: verdict for verdict in verdicts}
    return [_with_requirement(verdict, alone) for verdict in verdicts]


def _adjusted(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts with adjusted p; one that this takes above the level is not resolved."""
    adjusted: dict[str, float] = {}
    for primary in (True, False):
        family = [
            verdict
            for verdict in verdicts
            if verdict.claim.primary is primary and (verdict.p is not None or verdict.censored)
        ]
        values = holm(
            [1.0 if verdict.p is None else verdict.p for verdict in family]
        )  # a censored one counts in the number
        adjusted |= {verdict.claim.id: p for verdict, p in zip(family, values, strict=True) if verdict.p is not None}
    found = []
    for verdict in verdicts:
        p = adjusted.get(verdict.claim.id)
        open_now = verdict.verdict in (HOLDS, FAILS) and p is not None and p > LEVEL
        found.append(replace(verdict, adjusted=p, verdict=OPEN if open_now else verdict.verdict))
    return found


def _with_scale(verdict: Verdict, systems: Mapping[str, Retrains], *, reference: str) -> Verdict:
    """A claim `within` a margin, held against how far the systems of the page lie apart.

    It is not tested if no two systems beside its left one differ by more than the margin: on this scale nothing is told
    apart. `near` is set if the reference itself differs from the right side by less than twice the margin.
    """
    claim = verdict.claim
    if claim.relation != "within" or claim.versus is not None or claim.along or claim.factor != 1:
        return verdict
    values = {
        name: own.statistic(claim.metric, own.seeds)(list(range(len(own.seeds))))
        for name, own in systems.items()
        if name != claim.left and own.has(claim.metric, own.seeds)
    }
    if len(values) < 2:
        return verdict
    widest = max(values.values()) - min(values.values())
    if widest < claim.margin:
        return replace(verdict, verdict=UNTESTED, widest=widest, p=None, adjusted=None)
    if reference in values and claim.right in values and reference != claim.right:
        near = abs(values[reference] - values[claim.right])
        return replace(verdict, near=near) if near < 2 * claim.margin else verdict
    return verdict


def _with_requirement(verdict: Verdict, alone: Mapping[str, Verdict]) -> Verdict:
    """The verdict, or `not tested`. alone: every claim's by its own numbers; parse_recipe refuses circles."""
    requires = verdict.claim.requires
    if requires is None:
        return verdict
    required = _with_requirement(alone[requires], alone).verdict if requires in alone else None
    return verdict if required == HOLDS else replace(verdict, verdict=UNTESTED, required=required)
