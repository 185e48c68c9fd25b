"""What the records of a recipe say: each system's numbers with intervals, and a verdict on each claim.

The unit is the run: intervals of metrics are Student's over seeds, those of churn the jackknife over
seeds (a pair shares its runs with other pairs). Writing it down is left to page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from odist.claims.recipe import FAILS, HOLDS, OPEN, UNTESTED, Claim, Recipe
from odist.claims.record import Record
from odist.measure.churn import PAIR_METRICS, summarise_pairs
from odist.measure.intervals import Interval, jackknife, mean_interval, within_range

Estimate = tuple[float | None, Interval | None]
CHURN = "mean_abs_difference"
COSTS = ("examples_per_model", "total_examples", "distinct_examples", "flops", "seconds")


@dataclass(frozen=True)
class SystemSummary:
    """The retrains of one system.

    metrics: metric -> mean over seeds and interval; churn: measure -> mean over pairs and interval
    ratio: churn relative to the reference system's
    costs: of one run, mean over seeds
    """

    variant: str
    system: str
    seeds: tuple[int, ...]
    metrics: dict[str, Estimate]
    churn: dict[str, Estimate]
    ratio: Estimate
    costs: dict[str, float | None]


@dataclass(frozen=True)
class Verdict:
    """A claim decided: left - factor * right with its interval, over so many common seeds.

    ratios: of a claim with `versus`, left / right and versus[0] / versus[1], each with its interval; the
        difference is theirs
    required: of a claim that is not tested, the verdict on the claim that it requires; None where the variant lacks it
    """

    claim: Claim
    verdict: str
    difference: float | None
    interval: Interval | None
    num_seeds: int
    ratios: tuple[Estimate, Estimate] | None = None
    required: str | None = None


class Retrains:
    """The records of one system in one variant, in the order of their seeds."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.by_seed = {record.seed: record for record in sorted(records, key=lambda record: record.seed)}
        self.seeds = tuple(self.by_seed)

    def metric(self, name: str, seeds: Sequence[int]) -> list[float]:
        """The metric of each seed's predictor; empty when a run lacks it."""
        values = [self.by_seed[seed].metrics.get(name) for seed in seeds]
        known = [float(value) for value in values if value is not None]
        return known if len(known) == len(values) else []

    def censored(self, name: str, seeds: Sequence[int]) -> bool:
        """Whether the metric of some seed is a lower bound: a target that the run never reached."""
        return any(name in self.by_seed[seed].censored for seed in seeds)

    def pairs(self, seeds: Sequence[int]) -> dict[tuple[int, int], dict[str, float | None]]:
        """PAIR_METRICS of every pair of `seeds`, keyed by their places."""
        return {(i, j): self.by_seed[seeds[i]].churn[str(seeds[j])] for i, j in combinations(range(len(seeds)), 2)}

    def statistic(self, name: str, seeds: Sequence[int]) -> Callable[[list[int]], float]:
        """Mean of a metric, or mean over pairs of a measure of churn, over the chosen places in `seeds`."""
        if name not in PAIR_METRICS:
            values = self.metric(name, seeds)
            return lambda places: float(np.mean([values[place] for place in places]))
        pairs = self.pairs(seeds)
        return lambda places: float(np.mean([pairs[pair][name] for pair in combinations(places, 2)]))

    def has(self, name: str, seeds: Sequence[int]) -> bool:
        if name not in PAIR_METRICS:
            return bool(self.metric(name, seeds))
        return len(seeds) > 1 and all(pair[name] is not None for pair in self.pairs(seeds).values())


def retrains_by_system(records: Sequence[Record], recipe: Recipe) -> dict[tuple[str, str], Retrains]:
    """Records by variant and system, in the recipe's order; those of systems it no longer has are left out."""
    found = {}
    for variant in recipe.variants:
        for system in recipe.systems:
            own = [record for record in records if (record.variant, record.system) == (variant, system)]
            if own:
                found[variant, system] = Retrains(own)
    return found


def summarise(records: Sequence[Record], recipe: Recipe) -> list[SystemSummary]:
    """One summary for each variant and system that has records."""
    retrains = retrains_by_system(records, recipe)
    summaries = []
    for (variant, system), own in retrains.items():
        metrics: dict[str, Estimate] = {}
        for name in recipe.metrics:
            values = own.metric(name, own.seeds) if name not in PAIR_METRICS else []
            if values:
                metrics[name] = (float(np.mean(values)), within_range(name, mean_interval(values)))
        churn: dict[str, Estimate] = {}
        if len(own.seeds) > 1:
            over_pairs = summarise_pairs(own.pairs(own.seeds), len(own.seeds))
            churn = {name: (over_pairs[name], over_pairs[f"{name}_interval"]) for name in PAIR_METRICS}
        reference = retrains.get((variant, recipe.reference))
        ratio = _ratio(own, reference) if reference is not None and system != recipe.reference else (None, None)
        costs = {name: _mean_cost(own, name) for name in COSTS}
        summaries.append(SystemSummary(variant, system, own.seeds, metrics, churn, ratio, costs))
    return summaries


def _mean_cost(retrains: Retrains, name: str) -> float | None:
    values = [record.results[name] for record in retrains.by_seed.values() if record.results.get(name) is not None]
    return float(np.mean(values)) if len(values) == len(retrains.seeds) else None


def _common_seeds(first: Retrains, *others: Retrains) -> tuple[int, ...]:
    return tuple(seed for seed in first.seeds if all(seed in other.seeds for other in others))


def _ratio(own: Retrains, reference: Retrains) -> Estimate:
    """Churn divided by the reference's, with the jackknife over common seeds."""
    seeds = _common_seeds(own, reference)
    if len(seeds) < 2:
        return None, None
    above, below = own.statistic(CHURN, seeds), reference.statistic(CHURN, seeds)
    if any(pair[CHURN] == 0 for pair in reference.pairs(seeds).values()):
        return None, None  # equal bits in two retrains: no ratio
    return _jackknifed_ratio(lambda places: above(places) / below(places), len(seeds))


def _jackknifed_ratio(ratio: Callable[[list[int]], float], num_runs: int) -> Estimate:
    value, interval = jackknife(ratio, num_runs)
    return value, within_range("ratio", interval)


def judge(claim: Claim, *, left: Retrains | None, right: Retrains | None) -> Verdict:
    """Decide a claim by the 95 % interval of left - factor * right over the seeds that both systems have.

    The seed is left out of both sides at once (jackknife; for a plain metric this is the paired t
    interval). `holds` and `does not hold` need the interval wholly on one side; else `not resolved`.
    Fewer than three common seeds resolve nothing.
    """
    seeds = _common_seeds(left, right) if left is not None and right is not None else ()
    if left is None or right is None or not all(side.has(claim.metric, seeds) for side in (left, right)) or not seeds:
        return Verdict(claim, OPEN, None, None, len(seeds))
    of_left, of_right = left.statistic(claim.metric, seeds), right.statistic(claim.metric, seeds)

    def difference(places: list[int]) -> float:
        return of_left(places) - claim.factor * of_right(places)

    everyone = list(range(len(seeds)))
    if claim.metric in PAIR_METRICS:
        value, interval = jackknife(difference, len(seeds))
    else:
        value, interval = difference(everyone), mean_interval([difference([place]) for place in everyone])
    verdict = verdict_of(claim, interval)
    if any(side.censored(claim.metric, seeds) for side in _smaller_sides(claim, verdict, left, right)):
        verdict = OPEN  # a run that never got there counts with its horizon, so what is smaller may be larger
    return Verdict(claim, verdict, value, interval, len(seeds))


def _smaller_sides(claim: Claim, verdict: str, left: Retrains, right: Retrains) -> list[Retrains]:
    """The sides whose numbers must not be lower bounds for the verdict to stand."""
    if claim.relation == "within":
        return [left, right]
    return [left if (claim.relation == "<") == (verdict == HOLDS) else right]


def judge_ratios(claim: Claim, *, sides: Sequence[Retrains | None]) -> Verdict:
    """Decide a claim with `versus` by the 95 % interval of the difference of its two ratios.

    sides: left, right, versus[0], versus[1]. Each seed is left out of all four at once (jackknife).
    """
    present = [side for side in sides if side is not None]
    seeds = _common_seeds(present[0], *present[1:]) if len(present) == 4 else ()
    enough = 2 if claim.metric in PAIR_METRICS else 1
    known = all(side.has(claim.metric, seeds) and not side.censored(claim.metric, seeds) for side in present)
    if len(seeds) < enough or not known:
        return Verdict(claim, OPEN, None, None, len(seeds))
    left, right, other_left, other_right = (side.statistic(claim.metric, seeds) for side in present)
    everyone = list(range(len(seeds)))
    smallest = [list(pair) for pair in combinations(everyone, 2)] or [everyone]
    if any(below(places) == 0 for below in (right, other_right) for places in smallest):  # equal bits: no ratio
        return Verdict(claim, OPEN, None, None, len(seeds))

    def first(places: list[int]) -> float:
        return left(places) / right(places)

    def second(places: list[int]) -> float:
        return other_left(places) / other_right(places)

    value, interval = jackknife(lambda places: first(places) - claim.factor * second(places), len(seeds))
    ratios = (_jackknifed_ratio(first, len(seeds)), _jackknifed_ratio(second, len(seeds)))
    return Verdict(claim, verdict_of(claim, interval), value, interval, len(seeds), ratios)


def judge_all(claims: Sequence[Claim], retrains: Mapping[tuple[str, str], Retrains], *, variant: str) -> list[Verdict]:
    """The verdict on every claim, in one variant; `not tested` where the claim that it requires does not hold."""
    verdicts = []
    for claim in claims:
        left, right, *versus = (
            retrains.get((variant, name)) for name in (claim.left, claim.right, *(claim.versus or ()))
        )
        if claim.versus is None:
            verdicts.append(judge(claim, left=left, right=right))
        else:
            verdicts.append(judge_ratios(claim, sides=[left, right, *versus]))
    alone = {verdict.claim.id: verdict for verdict in verdicts}
    return [_with_requirement(verdict, alone) for verdict in verdicts]


def _with_requirement(verdict: Verdict, alone: Mapping[str, Verdict]) -> Verdict:
    """The verdict, or `not tested`. alone: every claim's by its own numbers; parse_recipe refuses circles."""
    requires = verdict.claim.requires
    if requires is None:
        return verdict
    required = _with_requirement(alone[requires], alone).verdict if requires in alone else None
    return verdict if required == HOLDS else replace(verdict, verdict=UNTESTED, required=required)


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
