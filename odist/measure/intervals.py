"""Confidence intervals from few observations, in plain Python and numpy.

Normal and Student quantiles, the interval of a proportion, of a mean, of a difference of means, and
the jackknife over retrained runs. Which quantity an interval belongs to is left to metrics, churn and
report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Interval = list[float]


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function by Lentz's method (Numerical Recipes, 6.4)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 100_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return value


def incomplete_beta(a: float, b: float, *, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), for 0 <= x <= 1."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, 1.0 - x) / b


def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t distribution, by bisection of its tail.

    probability: between 0 and 1, both excluded
    degrees_of_freedom: positive, not necessarily whole (Welch)
    """
    if not 0.0 < probability < 1.0 or degrees_of_freedom <= 0:
        raise ValueError(f"t_quantile needs 0 < probability < 1 and positive degrees of freedom, got {probability}, "
                         f"{degrees_of_freedom}")  # fmt: skip
    if probability == 0.5:
        return 0.0
    tail = min(probability, 1.0 - probability)
    v = degrees_of_freedom

    def upper_tail(t: float) -> float:
        return 0.5 * incomplete_beta(v / 2, 0.5, x=v / (v + t * t))

    low, high = 0.0, 1.0
    while upper_tail(high) > tail:
        low, high = high, high * 2
    while True:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if upper_tail(middle) > tail else (low, middle)
    return high if probability > 0.5 else -high


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


def difference_interval(left: Sequence[float], right: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """Welch's interval of mean(left) - mean(right) of independent runs; None below two runs on a side."""
    if min(len(left), len(right)) < 2:
        return None
    difference = float(np.mean(left) - np.mean(right))
    parts = [(float(np.var(side, ddof=1)) / len(side), len(side)) for side in (left, right)]
    variance = sum(part for part, _ in parts)
    if variance == 0.0:
        return [difference, difference]
    freedom = variance**2 / sum(part**2 / (count - 1) for part, count in parts)
    half = t_quantile(0.5 + confidence / 2, freedom) * math.sqrt(variance)
    return [difference - half, difference + half]


def jackknife(
    statistic: Callable[[list[int]], float], num_runs: int, *, confidence: float = 0.95
) -> tuple[float, Interval | None]:
    """Value of a statistic of pairs of runs, and its delete-one-run jackknife t interval.

    Pairs that share a run are not independent, so the run is the unit: the statistic is computed again
    with each run left out, and Student's t with num_runs - 1 degrees of freedom gives the width.
    Resampling runs with replacement (bootstrap) would pair a run with itself, count differences of
    zero and so bias the statistic downwards: it is wrong here.

    statistic: of the chosen run indices (at least two)
    num_runs: at least two; below three no run can be left out and the interval is None
    """
    everyone = list(range(num_runs))
    value = statistic(everyone)
    if num_runs < 3:
        return value, None
    left_out = np.array([statistic([run for run in everyone if run != omitted]) for omitted in everyone])
    variance = (num_runs - 1) / num_runs * float(np.sum((left_out - left_out.mean()) ** 2))
    half = t_quantile(0.5 + confidence / 2, num_runs - 1) * math.sqrt(variance)
    return value, [value - half, value + half]
