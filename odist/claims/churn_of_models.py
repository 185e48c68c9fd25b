"""Churn between two retrains over all pairs of their models: copies of a codistilled run, members of an ensemble."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from odist.measure.churn import PAIR_METRICS, form_of, pair_metrics
from odist.run.folder import Run


def churn_of_models(first: Run, second: Run, *, last_weights: bool = False) -> dict[str, float | None] | None:
    """PAIR_METRICS, each the mean over the pairs of a model of `first` with one of `second`; None for single models.

    Groups that learn from disjoint parts of the data are compared with the same group of the other run alone, as
    otherwise
    the change of the data would be measured, not the retraining. last_weights: not their average, where they have one
    """
    ours, theirs = (run.group_predictions(last_weights=last_weights) for run in (first, second))
    if len(ours) < 2 or len(theirs) < 2:
        return None
    targets = first.predictions().targets
    form = form_of(next(iter(ours.values())), targets)
    apart = first.config.get("data", {}).get("partition") == "disjoint"
    pairs = [(a, b) for a, b in product(ours, theirs) if a == b or not apart]
    found = [pair_metrics(ours[a], theirs[b], form=form) for a, b in pairs]
    if not found:
        return None
    return {name: _mean([one[name] for one in found]) for name in PAIR_METRICS}


def _mean(values: list[Any]) -> float | None:
    return None if None in values else float(np.mean(values))
