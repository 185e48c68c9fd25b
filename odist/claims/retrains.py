"""The runs of one system in one variant, as observations: a run is one, its copies are averaged within it.

Every copy of a codistilled run counts (any of them may be the one that predicts), and every member of an ensemble whose
first member is, bit for bit, the run of another system: the members are further retrains of that system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from odist.claims.quantities import AGAINST
from odist.claims.recipe import Recipe
from odist.claims.record import MEAN, Record
from odist.measure.churn import PAIR_METRICS


@dataclass(frozen=True)
class Copy:
    """One prediction of a run that stands for its system.

    group: the group that makes it, or MEAN
    metrics: of its last evaluation, its churn against another system, and the steps, seconds and examples to each target
    longest: target that it never reached (its metric is then that of the last step) -> steps had it taken twice the
        horizon
    """

    group: int
    metrics: Mapping[str, Any]
    longest: Mapping[str, float] = field(default_factory=dict)


def models_of(record: Record) -> list[Copy]:
    """Every trained model of a run; lost groups are left out."""
    groups = record.groups
    whole = record.metrics
    if len(groups) == 1:
        return [_copy(record, 0, whole)]
    return [
        _copy(record, number, group)
        for number, group in enumerate(groups)
        if group is not None and len(group.keys() & whole)
    ]


def _copy(record: Record, group: int, metrics: Mapping[str, Any]) -> Copy:
    """A copy with its metrics, those of its churn against another system among them."""
    against = record.churn_against.get(str(group), {})
    return Copy(group, {**metrics, **{f"{AGAINST}{name}": value for name, value in against.items()}})


def _is_ensemble(record: Record) -> bool:
    return record.results.get("predictor") == "mean"


def copies_of(record: Record) -> list[Copy]:
    """The predictions of a run that stand for its system: each copy, or the mean of an ensemble's members."""
    if _is_ensemble(record):
        return [_copy(record, MEAN, record.metrics)]
    return models_of(record) or [_copy(record, 0, record.metrics)]


class Retrains:
    """The records of one system in one variant, in the order of their seeds.

    members: the records of the ensembles, one a seed, whose members are the retrains of this system; None: there are
        none
    timed: (system, seed, group) -> a copy with its steps to the targets; those without are taken from the record
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        members: Sequence[Record] | None = None,
        timed: Mapping[tuple[str, int, int], Copy] | None = None,
    ) -> None:
        self.by_seed = {record.seed: record for record in sorted(records, key=lambda record: record.seed)}
        self.seeds = tuple(self.by_seed)
        self.members = None if members is None else {record.seed: record for record in members}
        self.timed = timed or {}

    def source(self, seed: int) -> Record:
        """The record whose copies count for this seed: the run's own, or that of the ensemble that holds it."""
        return self.by_seed[seed] if self.members is None else self.members[seed]

    def copies(self, seed: int) -> list[Copy]:
        """The copies of one run, or the members that count as such."""
        record = self.source(seed)
        found = copies_of(record) if self.members is None else models_of(record)
        return [self.timed.get((record.system, seed, copy.group), copy) for copy in found]

    def num_copies(self, seeds: Sequence[int]) -> int:
        return sum(len(self.copies(seed)) for seed in seeds)

    def metric(self, name: str, seeds: Sequence[int], *, longest: bool = False) -> list[float]:
        """The metric of each run, the mean over its copies; empty when one lacks it.

        longest: a target that a copy never reached counts as reached after twice its horizon, instead of at its horizon
        """
        means = []
        for seed in seeds:
            copies = self.copies(seed)
            values: list[Any] = [(copy.longest if longest else {}).get(name, copy.metrics.get(name)) for copy in copies]
            if None in values:
                return []
            means.append(float(np.mean(values)))
        return means

    def num_censored(self, name: str, seeds: Sequence[int]) -> int:
        """How many copies never reached the target."""
        return sum(name in copy.longest for seed in seeds for copy in self.copies(seed))

    def pairs(self, seeds: Sequence[int]) -> dict[tuple[int, int], Mapping[str, float | None]]:
        """PAIR_METRICS of every pair of `seeds`, keyed by their places: means over the pairs of their copies.

        Empty for a pair that was never there at once, such as runs of which one was recorded and deleted before the other.
        """
        return {
            (i, j): self._of_copies(seeds[i], seeds[j]) or self.by_seed[seeds[i]].churn.get(str(seeds[j]), {})
            for i, j in combinations(range(len(seeds)), 2)
        }

    def _of_copies(self, first: int, second: int) -> Mapping[str, float | None] | None:
        if self.members is None and _is_ensemble(self.by_seed[first]):
            return None
        source = self.by_seed if self.members is None else self.members
        return source[first].churn_of_models.get(str(second))

    def counts_all_copies(self, seeds: Sequence[int]) -> bool:
        """Whether churn is between all copies; older records hold that of the first copies alone."""
        several = any(len(self.copies(seed)) > 1 for seed in seeds)
        return not several or all(self._of_copies(a, b) is not None for a, b in combinations(seeds, 2))

    def statistic(self, name: str, seeds: Sequence[int], *, longest: bool = False) -> Callable[[list[int]], float]:
        """Mean of a metric, or mean over pairs of a measure of churn, over the chosen places in `seeds`."""
        if name not in PAIR_METRICS:
            values = self.metric(name, seeds, longest=longest)
            return lambda places: float(np.mean([values[place] for place in places]))
        pairs = self.pairs(seeds)
        return lambda places: float(np.mean([pairs[pair][name] for pair in combinations(places, 2)]))

    def has(self, name: str, seeds: Sequence[int]) -> bool:
        if name not in PAIR_METRICS:
            return bool(self.metric(name, seeds))
        return len(seeds) > 1 and all(pair.get(name) is not None for pair in self.pairs(seeds).values())


def retrains_by_system(
    records: Sequence[Record], recipe: Recipe, *, timed: Mapping[tuple[str, str, int, int], Copy] | None = None
) -> dict[tuple[str, str], Retrains]:
    """Records by variant and system, in the recipe's order; those of systems it no longer has are left out.

    timed: (variant, system, seed, group) -> the copy with its steps to the targets (odist.claims.targets)
    """
    found = {}
    for variant in recipe.variants:
        here = [record for record in records if record.variant == variant]
        of_variant = {key[1:]: copy for key, copy in (timed or {}).items() if key[0] == variant}
        for system in recipe.systems:
            own = [record for record in here if record.system == system]
            if own:
                found[variant, system] = Retrains(own, members=_ensembles_of(own, here), timed=of_variant)
    return found


def _ensembles_of(own: Sequence[Record], records: Sequence[Record]) -> list[Record] | None:
    """The largest ensembles whose first members are these runs, bit for bit; None unless every run has its ensemble."""
    weights = {record.seed: _weight_hashes(record) for record in own}
    best: list[Record] | None = None
    for system in dict.fromkeys(record.system for record in records):
        those = {record.seed: record for record in records if record.system == system}
        if not all(seed in those and _is_ensemble(those[seed]) for seed in weights):
            continue
        hashes = {seed: _weight_hashes(those[seed]) for seed in weights}
        same = all(
            len(one) == 1 and None not in one and hashes[seed][:1] == one and None not in hashes[seed]
            for seed, one in weights.items()
        )
        larger = best is None or len(hashes[own[0].seed]) > len(_weight_hashes(best[0]))
        if same and larger:
            best = [those[seed] for seed in weights]
    return best


def _weight_hashes(record: Record) -> list[str | None]:
    """Of what predicts: the average of the weights where there is one."""
    return [(group or {}).get("average_hash", (group or {}).get("weight_hash")) for group in record.groups]
