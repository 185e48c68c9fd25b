"""What the records of a recipe say of each system: its numbers with intervals.

The unit is the run, whose copies are averaged: intervals of metrics are Student's over runs, those of churn the
jackknife over runs (a pair shares its runs with other pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from odist.claims.quantities import AGAINST
from odist.claims.recipe import Recipe
from odist.claims.retrains import Retrains
from odist.claims.verdicts import common_seeds
from odist.measure.churn import PAIR_METRICS, summarise_pairs
from odist.measure.intervals import Interval, jackknife, mean_interval, within_range

Estimate = tuple[float | None, Interval | None]
COSTS = ("examples_per_model", "total_examples", "distinct_examples", "flops", "bytes_sent", "seconds")
NEWER_COSTS = ("bytes_sent",)  # older records lack them, and reports made of those show nothing of them


@dataclass(frozen=True)
class SystemSummary:
    """The retrains of one system.

    copies: models, or mean predictions of ensembles, in all its runs; all_copies: whether churn is between all of them
    metrics: metric -> mean over seeds and interval; churn: measure -> mean over pairs and interval
    ratio: the recipe's measure of churn relative to the reference system's
    costs: of one run, mean over seeds; without those that no record tells
    """

    variant: str
    system: str
    seeds: tuple[int, ...]
    metrics: dict[str, Estimate]
    churn: dict[str, Estimate]
    ratio: Estimate
    costs: dict[str, float | None]
    copies: int
    all_copies: bool

    def estimate_of(self, name: str) -> Estimate:
        """A metric or a measure of churn; nothing where the records do not tell."""
        return (self.metrics | self.churn).get(name, (None, None))


def summarise(retrains: Mapping[tuple[str, str], Retrains], recipe: Recipe) -> list[SystemSummary]:
    """One summary for each variant and system that has records. retrains: as `retrains_by_system` gives them."""
    summaries = []
    for (variant, system), own in retrains.items():
        metrics: dict[str, Estimate] = {}
        for name in dict.fromkeys((*recipe.metrics, recipe.churn_measure)):
            values = own.metric(name, own.seeds) if name not in PAIR_METRICS else []
            if values:
                metrics[name] = (
                    float(np.mean(values)),
                    within_range(name.removeprefix(AGAINST), mean_interval(values)),
                )
        churn: dict[str, Estimate] = {}
        if len(own.seeds) > 1:
            over_pairs = summarise_pairs(own.pairs(own.seeds), len(own.seeds))
            churn = {name: (over_pairs[name], over_pairs[f"{name}_interval"]) for name in PAIR_METRICS}
        reference = retrains.get((variant, recipe.reference))
        ratio: Estimate = (None, None)
        if reference is not None and system != recipe.reference:
            ratio = _ratio(own, reference, measure=recipe.churn_measure)
        costs = {name: _mean_cost(own, name) for name in COSTS}
        costs = {name: cost for name, cost in costs.items() if cost is not None or name not in NEWER_COSTS}
        copies, all_copies = own.num_copies(own.seeds), own.counts_all_copies(own.seeds)
        summaries.append(SystemSummary(variant, system, own.seeds, metrics, churn, ratio, costs, copies, all_copies))
    return summaries


def _mean_cost(retrains: Retrains, name: str) -> float | None:
    values = [record.results[name] for record in retrains.by_seed.values() if record.results.get(name) is not None]
    return float(np.mean(values)) if len(values) == len(retrains.seeds) else None


def _ratio(own: Retrains, reference: Retrains, *, measure: str) -> Estimate:
    """A measure of churn divided by the reference's, with the jackknife over common seeds."""
    seeds = common_seeds([own, reference])
    if not (own.has(measure, seeds) and reference.has(measure, seeds)):
        return None, None
    above, below = own.statistic(measure, seeds), reference.statistic(measure, seeds)
    if measure in PAIR_METRICS and any(pair[measure] == 0 for pair in reference.pairs(seeds).values()):
        return None, None  # equal bits in two retrains: no ratio
    return _jackknifed_ratio(lambda places: above(places) / below(places), len(seeds))


def _jackknifed_ratio(ratio: Callable[[list[int]], float], num_runs: int) -> Estimate:
    value, interval = jackknife(ratio, num_runs)
    return value, within_range("ratio", interval)
