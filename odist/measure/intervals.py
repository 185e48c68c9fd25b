"""Confidence intervals: of a proportion, of a mean over rows, of a mean over runs, and the jackknife over runs.

Intervals of a metric are cut to what the metric can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

Interval = list[float]
# Metric: the lowest and the highest value that it can take. What is not listed may take any: the excess over an
# optimum is negative on rows that happen to suit a model.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("log_loss", "cross_entropy", "bits_per_byte"), (0.0, math.inf)),
    **dict.fromkeys(("ratio", "steps_to_50", "steps_to_75", "steps_to_85"), (0.0, math.inf)),
    "perplexity": (1.0, math.inf),
    **dict.fromkeys(("auc", "accuracy", "top1", "top5", "brier", "calibration_error"), (0.0, 1.0)),
    **dict.fromkeys(("mean_abs_difference", "churn_without_shift", "root_mean_square", "flips"), (0.0, 1.0)),
    "relative_difference": (0.0, 2.0),
    "rank_correlation": (-1.0, 1.0),
}


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t distribution.

    probability: between 0 and 1, both excluded
    degrees_of_freedom: positive, not necessarily whole
    """
    from scipy.special import stdtrit

    if not 0.0 < probability < 1.0 or degrees_of_freedom <= 0:
        raise ValueError(f"no quantile of Student's t at {probability} with {degrees_of_freedom} degrees of freedom")
    quantile = float(stdtrit(degrees_of_freedom, probability))
    return float(f"{quantile:.10g}")  # further digits differ between versions of scipy (1.13, 1.17); reports must not


def proportion_interval(successes: float, count: float, *, confidence: float = 0.95) -> Interval | None:
    """Wilson's interval of a proportion; None without observations."""
    if count <= 0:
        return None
    z = normal_quantile(0.5 + confidence / 2)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def mean_over_rows_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval | None:
    """Normal interval of the mean of many independent values; None below two."""
    if len(values) < 2:
        return None
    half = normal_quantile(0.5 + confidence / 2) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return [mean - half, mean + half]


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """Student's interval of the mean of a few values, one per run; None below three.

    Of two values it would be their distance times 6.4, by one degree of freedom: a width that says nothing.
    """
    if len(values) < 3:
        return None
    half = t_quantile(0.5 + confidence / 2, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return [mean - half, mean + half]


@dataclass(frozen=True)
class Estimate:
    """A statistic of independent runs with its standard error, judged by Student's t.

    error: None where too few runs give none
    """

    value: float
    error: float | None
    freedom: int

    def interval(self, *, confidence: float = 0.95) -> Interval | None:
        """The interval around the value; None without a standard error."""
        if self.error is None:
            return None
        half = t_quantile(0.5 + confidence / 2, self.freedom) * self.error
        return [self.value - half, self.value + half]

    def p_value(self, distance: float) -> float | None:
        """Two-sided p of a boundary that lies `distance` from the value; None without a standard error.

        It is the smallest alpha at which the interval of confidence 1 - alpha does not contain the boundary.
        """
        if self.error is None:
            return None
        if self.error == 0.0:
            return 0.0 if distance else 1.0
        from scipy.special import stdtr

        return float(2 * stdtr(self.freedom, -abs(distance) / self.error))


def jackknife_estimate(statistic: Callable[[list[int]], float], num_runs: int) -> Estimate:
    """A statistic of runs with its delete-one-run jackknife error; of a plain mean this is the usual standard error.

    Pairs that share a run are not independent, so the run is the unit: the statistic is computed again with each run
    left out, and Student's t with num_runs - 1 degrees of freedom gives the width. Resampling runs with replacement
    (bootstrap) would pair a run with itself, count differences of zero and so bias the statistic downwards.

    statistic: of the chosen run indices
    num_runs: below three no run can be left out and there is no error
    """
    everyone = list(range(num_runs))
    value = statistic(everyone)
    if num_runs < 3:
        return Estimate(value, None, max(0, num_runs - 1))
    left_out = np.array([statistic([run for run in everyone if run != omitted]) for omitted in everyone])
    variance = (num_runs - 1) / num_runs * float(np.sum((left_out - left_out.mean()) ** 2))
    return Estimate(value, math.sqrt(variance), num_runs - 1)


def jackknife(
    statistic: Callable[[list[int]], float], num_runs: int, *, confidence: float = 0.95
) -> tuple[float, Interval | None]:
    """Value and interval of `jackknife_estimate`; the interval is None below three runs."""
    found = jackknife_estimate(statistic, num_runs)
    return found.value, found.interval(confidence=confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in the same order (Holm 1979).

    Deciding those at most alpha keeps the chance of any wrong decision in the whole family at alpha, however they
    depend.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def mean_over_pairs(
    values: Mapping[tuple[int, int], float], num_runs: int, *, confidence: float = 0.95
) -> tuple[float, Interval | None]:
    """Mean over all pairs of distinct runs, with the delete-one-run jackknife interval.

    values: for each pair (i, j) with i < j < num_runs
    """

    def statistic(runs: list[int]) -> float:
        return float(np.mean([values[pair] for pair in combinations(runs, 2)]))

    return jackknife(statistic, num_runs, confidence=confidence)


def within_range(metric: str, interval: Interval | None) -> Interval | None:
    """The part of an interval that the metric can take: Student's interval of a few runs may reach beyond 0 or 1."""
    if interval is None:
        return None
    low, high = RANGES.get(metric, (-math.inf, math.inf))
    return [max(low, interval[0]), min(high, interval[1])]


def intervals_within_range(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with every `<name>_interval` cut to what the metric can take."""
    return {
        key: within_range(key.removesuffix("_interval"), value) if key.endswith("_interval") else value
        for key, value in results.items()
    }
