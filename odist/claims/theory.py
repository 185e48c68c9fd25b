"""How much churn averaging removes where only independent noise of training makes retrains differ: a formula without a fit."""

from __future__ import annotations

import math


def churn_of_ensemble(num_groups: int) -> float:
    """Churn of the mean of N independent models, relative to one of them: the root of the variance 1 / N."""
    return math.sqrt(1 / num_groups)


def churn_of_copy(num_groups: int, *, weight: float) -> float:
    """Churn of one of N codistilled models, relative to a model trained alone.

    N linear models under SGD noise, each drawn to the mean of its N - 1 peers. The noise of the common mean is not damped and
    has the share 1 / N of the variance; that of the differences is damped at the rate 1 + w N / (N - 1) instead of 1.

    num_groups: N, two or more; weight: w of the distillation loss relative to that of the labels
    """
    damping = 1 + weight * num_groups / (num_groups - 1)
    return math.sqrt(1 / num_groups + (1 - 1 / num_groups) / damping)
