"""An endless stream of rows with Criteo's columns, and the probability that each was clicked on.

Row r is a pure function of (data.seed, split, r), so any row of any split can be asked for in any
order, nothing is stored and no two streams overlap. Everything after the ids is the code path of
prepared rows.
"""

from __future__ import annotations

import numpy as np

from odist.config.schema import SyntheticConfig
from odist.rng import derive, mix, uniform

NUM_NUMERIC, NUM_CATEGORICAL = 13, 26
BASE_RATE = 0.256  # of Criteo's training file
QUANTILES = 4096  # distinct draws of a numeric column
TABLE = 1 << 16  # resolution of the categorical distributions
INTERACTION_CELLS = 1 << 10
FIT_ROWS = 20_000  # training rows from which normalisation and the scale of the logit are fitted


def normal(shape: tuple[int, ...], *, key: int) -> np.ndarray:
    """Standard normal numbers of a key (Box and Muller), float64."""
    count = np.arange(int(np.prod(shape)), dtype=np.uint64)
    radius = np.sqrt(-2 * np.log(uniform(count, key=derive(key, "radius"))))
    return (radius * np.cos(2 * np.pi * uniform(count, key=derive(key, "angle")))).reshape(shape)


class SyntheticCriteo:
    """A click generator: Zipf categoricals, skewed integers, missing cells, main effects, interactions.

    config: sizes and strengths; seed: `data.seed`, fixes the generator and all its rows
    """

    def __init__(self, config: SyntheticConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self._make_columns()
        self._make_effects()
        rows = np.arange(FIT_ROWS, dtype=np.int64)
        numeric, categorical, logit = self._columns(rows, "train")
        self.numeric_mean = np.nanmean(numeric, axis=0).astype(np.float32)
        self.numeric_std = np.maximum(np.nanstd(numeric, axis=0), 1e-6).astype(np.float32)
        self._scale = config.signal / float(logit.std())
        self._bias = _bias_for_rate(self._scale * logit, BASE_RATE)
        del categorical

    def _make_columns(self) -> None:
        config, seed = self.config, self.seed
        sizes = np.geomspace(4, max(4, config.vocabulary), NUM_CATEGORICAL).astype(np.int64)
        sizes = sizes[np.argsort(normal((NUM_CATEGORICAL,), key=derive(seed, "column sizes")))]
        self.offsets = np.concatenate([[0], np.cumsum(sizes + 1)])[:-1]  # value 0 of each column means missing
        self.num_ids = int((sizes + 1).sum())
        self.values = np.empty((NUM_CATEGORICAL, TABLE), dtype=np.int64)
        for column, size in enumerate(sizes):
            share = 1.0 / np.arange(1, size + 1) ** config.zipf
            edges = np.cumsum(share) / share.sum()
            points = (np.arange(TABLE) + 0.5) / TABLE
            self.values[column] = 1 + np.minimum(np.searchsorted(edges, points), size - 1)
        spread = uniform(np.arange(NUM_NUMERIC + NUM_CATEGORICAL, dtype=np.uint64), key=derive(seed, "missing"))
        self.missing = np.minimum(2 * config.missing * spread, 0.95)
        quantile = (np.arange(QUANTILES) + 0.5) / QUANTILES
        level = normal((NUM_NUMERIC, 1), key=derive(seed, "levels")) + 2
        skewed = np.floor(np.exp(level + 1.2 * np.log(quantile / (1 - quantile)) / 1.7))  # log-logistic counts
        self.numbers = np.log1p(np.minimum(skewed, 1e6))

    def _make_effects(self) -> None:
        seed = self.seed
        strength = 0.2 + 0.6 * uniform(np.arange(NUM_CATEGORICAL, dtype=np.uint64), key=derive(seed, "strength"))
        effects = normal((self.num_ids,), key=derive(seed, "main"))
        owner = np.searchsorted(self.offsets, np.arange(self.num_ids), side="right") - 1
        self.main = (effects * strength[owner]).astype(np.float64)
        wave = normal((3, NUM_NUMERIC, 1), key=derive(seed, "numeric"))
        self.numeric_main = 0.4 * np.sin(wave[0] + (0.5 + np.abs(wave[1])) * self.numbers) * wave[2]
        self.numeric_missing = 0.3 * normal((NUM_NUMERIC,), key=derive(seed, "numeric missing"))
        pairs = uniform(np.arange(2 * self.config.interactions, dtype=np.uint64), key=derive(seed, "pairs"))
        first, second = np.floor(pairs.reshape(2, -1) * [[NUM_CATEGORICAL], [NUM_CATEGORICAL - 1]]).astype(np.int64)
        self.pairs = (first, (first + 1 + second) % NUM_CATEGORICAL)
        self.joint = 0.5 * normal((self.config.interactions, INTERACTION_CELLS), key=derive(seed, "joint"))

    def _columns(self, ids: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numeric [n, 13] (NaN: missing), ids [n, 26] and the unscaled logit [n] of rows `ids`."""
        num_columns = NUM_NUMERIC + NUM_CATEGORICAL
        cells = ids.astype(np.uint64)[:, None] * np.uint64(num_columns) + np.arange(num_columns, dtype=np.uint64)
        bits = mix(cells, key=derive(self.seed, f"rows {split}"))
        gone = (bits >> np.uint64(40)).astype(np.float64) * 2.0**-24 < self.missing
        draw = bits[:, :NUM_NUMERIC] & np.uint64(QUANTILES - 1)
        column = np.arange(NUM_NUMERIC)
        numeric = np.where(gone[:, :NUM_NUMERIC], np.nan, self.numbers[column, draw])
        logit = np.where(gone[:, :NUM_NUMERIC], self.numeric_missing, self.numeric_main[column, draw]).sum(axis=1)
        draw = bits[:, NUM_NUMERIC:] & np.uint64(TABLE - 1)
        value = np.where(gone[:, NUM_NUMERIC:], 0, self.values[np.arange(NUM_CATEGORICAL), draw])
        categorical = value + self.offsets
        logit += self.main[categorical].sum(axis=1)
        if self.config.interactions:
            joint = value[:, self.pairs[0]] * TABLE + value[:, self.pairs[1]]
            cell = mix(joint.astype(np.uint64), key=derive(self.seed, "cells")) & np.uint64(INTERACTION_CELLS - 1)
            logit += self.joint[np.arange(self.config.interactions), cell].sum(axis=1)
        return numeric, categorical, logit

    def rows(self, ids: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows of a split.

        ids: int64 [n]. Returns the log-transformed integers float32 [n, 13] (NaN: missing), categorical
        ids int32 [n, 26], labels float32 [n] and their true probabilities float64 [n]
        """
        numeric, categorical, logit = self._columns(ids, split)
        probability = 1 / (1 + np.exp(-(self._scale * logit + self._bias)))
        draw = uniform(ids.astype(np.uint64), key=derive(self.seed, f"labels {split}"))
        labels = (draw < probability).astype(np.float32)
        return numeric.astype(np.float32), categorical.astype(np.int32), labels, probability


def _bias_for_rate(logit: np.ndarray, rate: float) -> float:
    """The constant that makes the mean probability of `logit` + constant equal to `rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if float((1 / (1 + np.exp(-(logit + middle)))).mean()) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
