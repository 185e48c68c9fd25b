"""Hashed logistic regression on the rows of a prepared Criteo run: the bar a network has to clear.

The model is linear in the normalised integers, a flag for each missing one, and one weight per hash
bucket of the categorical values, so it sees what the network sees. It is fitted in passes over the
training rows in a shuffled order, batch by batch, so that memory does not grow with the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.claims.references import Difference
from odist.config.schema import Config, DataConfig
from odist.data.order import ShuffledOrder
from odist.errors import UserError
from odist.measure.exact import binary_results
from odist.measure.intervals import mean_over_rows_interval
from odist.measure.scores import log_loss_rows

if TYPE_CHECKING:
    from odist.tasks.criteo import Source

EVALUATE_BATCH = 8192


@dataclass(frozen=True)
class LogisticOptions:
    """Settings of one fit.

    lr: Adagrad's learning rate; l2: weight of |w|^2 / 2 beside the mean log loss
    passes: over the training rows; batch: rows of an update; seed: of the order
    """

    lr: float = 0.04
    l2: float = 1e-4
    passes: int = 3
    batch: int = 100
    seed: int = 0


@dataclass(frozen=True)
class LogisticGrid:
    """What is tried on the tuning split: every learning rate (factor 2) with every penalty, after every pass.

    extensions: how often a side is extended by a factor when the best value lies at an edge
    """

    lr: tuple[float, ...] = (0.02, 0.04, 0.08)
    l2: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    passes: int = 16
    extensions: int = 3


@dataclass(frozen=True)
class Setting:
    """Options that were tried, and their log loss in nats on the tuning split."""

    options: LogisticOptions
    log_loss: float


@dataclass(frozen=True)
class ReferenceResult:
    """A tuned and fitted reference.

    options: chosen; trials: all of the tuning split; at_edge: settings still at an edge of the grid
    metrics: `odist.measure.exact.binary_results` on the validation part
    probabilities, targets: [rows] of the validation part; fingerprint: of the data
    """

    options: LogisticOptions
    trials: tuple[Setting, ...]
    at_edge: tuple[str, ...]
    metrics: dict[str, Any]
    probabilities: np.ndarray
    targets: np.ndarray
    fingerprint: str


class HashedLogistic:
    """Weights of a logistic regression and their Adagrad sums.

    num_dense: width of the dense input; num_buckets: of the hashed input
    The penalty is applied when a weight is next used, for all the updates since: the accumulated rate of
    a weight changes only when it is used, so nothing but the rounding differs from decay at every update.
    Source: Duchi, Hazan and Singer 2011 (Adagrad, lazy updates in section 5).
    """

    def __init__(self, num_dense: int, num_buckets: int, *, options: LogisticOptions) -> None:
        self.options = options
        self.num_dense = num_dense
        size = 1 + num_dense + num_buckets  # the intercept first; it is not penalised
        self.weights = np.zeros(size)
        self.squares = np.zeros(size)
        self.used = np.zeros(size, dtype=np.int64)
        self.steps = 0

    def logits(self, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Logits [n] of dense [n, num_dense] and ids [n, columns]."""
        w, first = self.weights, 1 + self.num_dense
        return w[0] + dense @ w[1:first] + w[first + ids].sum(axis=1)

    def update(self, dense: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
        """One Adagrad update by the mean log loss of a batch."""
        first = 1 + self.num_dense
        buckets, places = np.unique(ids, return_inverse=True)
        touched = np.concatenate([np.arange(first), first + buckets])
        self._decay(touched)
        w = self.weights[touched]
        logits = w[0] + dense @ w[1:first] + w[first + places.reshape(ids.shape)].sum(axis=1)
        error = (_sigmoid(logits) - labels) / len(labels)
        hashed = np.bincount(places.ravel(), weights=np.repeat(error, ids.shape[1]), minlength=len(buckets))
        gradient = np.concatenate([[error.sum()], error @ dense, hashed])
        squares = self.squares[touched] + gradient**2
        self.squares[touched] = squares
        self.weights[touched] = w - self.options.lr * gradient / np.maximum(np.sqrt(squares), 1e-10)
        self.steps += 1

    def settle(self) -> None:
        """Bring every weight's penalty up to date."""
        self._decay(np.arange(len(self.weights)))

    def _decay(self, touched: np.ndarray) -> None:
        waited, self.used[touched] = self.steps - self.used[touched], self.steps
        rate = self.options.lr * self.options.l2 / np.maximum(np.sqrt(self.squares[touched]), 1e-10)
        rate[touched == 0] = 0.0
        self.weights[touched] *= np.exp(-rate * waited)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def fit_passes(source: Source, *, options: LogisticOptions) -> Iterator[HashedLogistic]:
    """Fit on the training rows of `source`; the model after each pass (the same object)."""
    num_dense = 2 * len(source.numeric_mean)
    model = HashedLogistic(num_dense, source.num_ids, options=options)
    rows = source.num_rows("train")
    order = ShuffledOrder(rows, options.batch, seed=options.seed, offset=source.first_row)
    steps = max(1, rows // options.batch)
    for step in range(options.passes * steps):
        dense, ids, labels = read_rows(source, order.ids(step), split="train")
        model.update(dense, ids, labels)
        if (step + 1) % steps == 0:
            model.settle()
            yield model


def read_rows(source: Source, ids: np.ndarray, *, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised numbers beside missing flags [n, 26], ids [n, 26], labels [n], as the network gets them."""
    rows = source.rows(ids, split)
    missing = np.isnan(rows.numeric)
    scaled = np.where(missing, 0.0, (rows.numeric - source.numeric_mean) / source.numeric_std)
    return np.concatenate([scaled, missing], axis=1), rows.categorical, rows.labels[:, 0]


def predict(model: HashedLogistic, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [rows] and labels [rows] of the part that `source` evaluates."""
    probabilities, targets = [], []
    for start in range(0, source.num_rows("validation"), EVALUATE_BATCH):
        stop = min(start + EVALUATE_BATCH, source.num_rows("validation"))
        dense, ids, labels = read_rows(source, np.arange(start, stop), split="validation")
        probabilities.append(_sigmoid(model.logits(dense, ids)))
        targets.append(labels)
    return np.concatenate(probabilities), np.concatenate(targets)


def tune(source: Source, *, grid: LogisticGrid, seed: int = 0) -> tuple[LogisticOptions, list[Setting], list[str]]:
    """Choose learning rate, penalty and passes by the log loss on what `source` evaluates (the tuning split).

    A side of the grid at whose edge the best value lies is extended, at most `grid.extensions` times;
    settings still at an edge then are named in the third result. The number of passes has no lower side.
    """
    rates, penalties, trials = list(grid.lr), list(grid.l2), dict[tuple[float, float], list[Setting]]()
    for extension in range(grid.extensions + 1):
        for lr in rates:
            for l2 in penalties:
                if (lr, l2) not in trials:
                    trials[lr, l2] = _trials(source, LogisticOptions(lr=lr, l2=l2, passes=grid.passes, seed=seed))
        best = min((trial for own in trials.values() for trial in own), key=lambda trial: trial.log_loss).options
        edges = [
            name for name, side in (("lr", rates), ("l2", penalties)) if getattr(best, name) in (min(side), max(side))
        ]
        if not edges or extension == grid.extensions:
            break
        for name, side, factor in (("lr", rates, 2.0), ("l2", penalties, 10**0.5)):
            if name in edges:
                value = getattr(best, name)
                side.append(value / factor if value == min(side) else value * factor)
    if best.passes == grid.passes:
        edges.append("passes")
    return best, [trial for own in trials.values() for trial in own], edges


def _trials(source: Source, options: LogisticOptions) -> list[Setting]:
    """One trial for every pass of a fit."""
    found = []
    for done, model in enumerate(fit_passes(source, options=options), 1):
        probabilities, targets = predict(model, source)
        loss = float(binary_results(probabilities, targets)["log_loss"])
        found.append(Setting(replace(options, passes=done), loss if math.isfinite(loss) else math.inf))
    return found


def logistic_reference(data: DataConfig, *, grid: LogisticGrid | None = None) -> ReferenceResult:
    """Tune on the tuning split, fit on the whole training part, evaluate on the validation part.

    data: the `data` node of the run that it is compared with; only prepared rows
    Raises UserError for generated rows (their best possible loss is known, no reference is needed).
    """
    if data.name != "prepared":
        raise UserError(
            f"data.name={data.name}: the logistic reference is for prepared rows (data=prepared "
            "data.path=DIR). Generated rows carry their own best possible loss."
        )
    from odist.tasks.criteo import PreparedSource

    tuning = PreparedSource(Config(data=replace(data, holdout="tuning")))
    options, trials, at_edge = tune(tuning, grid=grid or LogisticGrid())
    source = PreparedSource(Config(data=replace(data, holdout="validation")))
    model = list(fit_passes(source, options=options))[-1]
    probabilities, targets = predict(model, source)
    metrics = binary_results(probabilities, targets)
    return ReferenceResult(options, tuple(trials), tuple(at_edge), metrics, probabilities, targets, source.fingerprint)


def paired_differences(
    probabilities: Sequence[np.ndarray], reference: np.ndarray, *, targets: np.ndarray
) -> tuple[list[Difference], Difference]:
    """Log loss of each prediction less the reference's on the same rows, and the mean over predictions.

    probabilities: one array [rows] a run; reference, targets: [rows]
    """
    of_reference = log_loss_rows(reference, targets)
    rows = [log_loss_rows(p, targets) - of_reference for p in probabilities]

    def summary(difference: np.ndarray) -> Difference:
        return Difference(float(difference.mean()), mean_over_rows_interval(difference))

    return [summary(difference) for difference in rows], summary(np.mean(rows, axis=0))
