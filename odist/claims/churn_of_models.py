"""Churn between the models of two runs: of two retrains over all pairs of copies or members, and against a former system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from odist.claims.recipe import System
from odist.claims.record import MEAN
from odist.errors import UserError
from odist.measure.churn import PAIR_METRICS, form_of, pair_metrics
from odist.run.folder import Run

Measures = dict[str, float | None]


def churn_of_models(first: Run, second: Run, *, last_weights: bool = False) -> Measures | None:
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
    return _mean(found) if found else None


@dataclass(frozen=True)
class Predicting:
    """What a run predicts, read as a system of a recipe reads it.

    models: number of a group -> [rows] or [rows, classes]; mean: that of all groups where it predicts, else None
    targets: [rows]; fingerprint: names the rows; name: of the run, for messages
    """

    models: Mapping[int, np.ndarray]
    mean: np.ndarray | None
    targets: np.ndarray
    fingerprint: str
    name: str

    @classmethod
    def of(cls, run: Run, system: System | None) -> Predicting:
        """system: how it reads the run; None: as the run predicts by itself"""
        last = system is not None and system.weights == "last"
        predictor = None if system is None else system.predictor
        whole = run.predictions(last_weights=last, predictor=predictor)
        by_mean = (predictor or whole.predictor) == "mean"
        return cls(
            run.group_predictions(last_weights=last),
            whole.probabilities if by_mean else None,
            whole.targets,
            whole.fingerprint,
            str(run.path),
        )

    @property
    def that_predict(self) -> list[np.ndarray]:
        """The mean, or every copy by itself."""
        return [*self.models.values()] if self.mean is None else [self.mean]


def churn_against(new: Predicting, former: Predicting) -> dict[str, Measures]:
    """PAIR_METRICS of every model of a run, and of their mean where that predicts, by its number as text, MEAN for the mean.

    Each is the mean over what predicts for the former system.
    Raises UserError when the two predict different rows.
    """
    if new.fingerprint != former.fingerprint:
        raise UserError(
            f"{new.name} is to replace {former.name} but predicts different rows, so the two cannot be compared. Delete the "
            "older of the two and start the recipe again."
        )
    own = dict(new.models) if new.mean is None else {**new.models, MEAN: new.mean}
    return {str(number): _against(predicted, former) for number, predicted in own.items()}


def _against(predicted: np.ndarray, former: Predicting) -> Measures:
    form = form_of(predicted, former.targets)
    return _mean([pair_metrics(old, predicted, form=form) for old in former.that_predict])


def _mean(found: Sequence[Mapping[str, Any]]) -> Measures:
    """Each of PAIR_METRICS, the mean over pairs; None where one pair lacks it."""
    values = {name: [one[name] for one in found] for name in PAIR_METRICS}
    return {name: None if None in own else float(np.mean(own)) for name, own in values.items()}
