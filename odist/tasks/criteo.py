"""Click prediction on Criteo's 13 integer and 26 categorical columns, prepared or synthetic.

Source: Anil et al. 2018, section 3.1. The paper does not say how columns are encoded; our choice: integers on a log
scale, normalised by the training part, zero and a flag where missing; categoricals hashed into one table.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from odist import registry
from odist.config.schema import Config, CriteoConfig
from odist.data.rows import RowStore
from odist.errors import UserError
from odist.losses import LossOptions, Soft, Sums, binary
from odist.measure.metrics import BinaryMetrics, binary_results
from odist.tasks.base import Batch, Carry
from odist.tasks.rows import PreparedRows, RowSource, RowTask, SyntheticRows
from odist.tasks.synthetic_criteo import NUM_CATEGORICAL, NUM_NUMERIC, SyntheticCriteo

PRIOR_ROWS = 65_536  # rows from which the click rate is counted

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


class Source(RowSource, Protocol):
    """Rows by number: numeric [n, 13], ids [n, 26], labels [n], true probabilities [n] or None."""

    num_ids: int
    numeric_mean: np.ndarray
    numeric_std: np.ndarray

    def rows(self, ids: np.ndarray, split: str) -> Columns: ...


class CriteoTask(RowTask):
    """The click task; see `odist.tasks.base.Task` for the methods."""

    main_metric = "log_loss"

    def __init__(self, config: Config) -> None:
        synthetic = config.data.name == "synthetic"
        self.source: Source = SyntheticSource(config) if synthetic else PreparedSource(config)
        super().__init__(config, self.source)
        self.loss_options = LossOptions.of(config.algorithm)

    def build_model(self) -> nn.Module:
        options = {key: value for key, value in asdict(self.config.model).items() if key != "name"}
        build = registry.find("models", self.config.model.name)
        model: nn.Module = build(2 * NUM_NUMERIC, NUM_CATEGORICAL, buckets=self.source.num_ids, **options)
        return model

    def batch(self, ids: np.ndarray, split: str) -> Batch:
        numeric, categorical, labels, bayes = self.source.rows(ids, split)
        missing = np.isnan(numeric)
        scaled = (numeric - self.source.numeric_mean) / self.source.numeric_std
        both = np.concatenate([np.where(missing, np.float32(0), scaled), missing], axis=1, dtype=np.float32)
        return Batch(
            (torch.from_numpy(both), torch.from_numpy(categorical)),
            torch.from_numpy(labels),
            torch.ones(len(labels)),
            None if bayes is None else torch.from_numpy(bayes),
        )

    def forward(self, model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        return model(*batch.inputs), None

    def loss(self, logits: Tensor, batch: Batch, soft: Soft | None = None) -> Sums:
        return binary(logits, batch.targets, weights=batch.weights, options=self.loss_options, soft=soft)

    def metrics(self) -> BinaryMetrics:
        return BinaryMetrics()

    def probabilities(self, logits: Tensor, batch: Batch) -> Tensor:
        return torch.sigmoid(logits)

    def results(
        self, probabilities: np.ndarray, targets: np.ndarray, *, bayes: np.ndarray | None, split: str
    ) -> dict[str, Any]:
        return binary_results(probabilities, targets, bayes=bayes)

    def prior(self) -> Tensor:
        ids = np.arange(min(PRIOR_ROWS, self.num_rows("train")), dtype=np.int64)
        return torch.tensor(float(self.source.rows(ids, "train")[2].mean()))


class SyntheticSource(SyntheticRows):
    """Rows of the generator."""

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, CriteoConfig)
        super().__init__("synthetic-criteo-1", config.task.synthetic, config.data)
        self.generator = SyntheticCriteo(config.task.synthetic, seed=config.data.seed)
        self.num_ids = self.generator.num_ids
        self.numeric_mean, self.numeric_std = self.generator.numeric_mean, self.generator.numeric_std

    def rows(self, ids: np.ndarray, split: str) -> Columns:
        return self.generator.rows(ids, self.drawn(split))


class PreparedSource(PreparedRows):
    """Rows of a store made by `odist prepare criteo`."""

    def __init__(self, config: Config) -> None:
        store = RowStore.open(Path(str(config.data.path)))
        if store.task != "criteo":
            raise UserError(f"data.path={config.data.path}: a store of task {store.task!r}, expected criteo.")
        super().__init__(
            config.data,
            train=store.num_rows("train"),
            validation=store.num_rows("validation"),
            fingerprint=store.fingerprint,
            fitted_fingerprint=store.fitted_fingerprint,
        )
        self.store = store
        fitted = store.fitted
        self.numeric_mean = np.asarray(fitted["numeric_mean"], dtype=np.float32)
        self.numeric_std = np.asarray(fitted["numeric_std"], dtype=np.float32)
        self.num_ids = int(store.meta["options"]["buckets"])

    def rows(self, ids: np.ndarray, split: str) -> Columns:
        ids, split = self.stored(ids, split)
        packed = self.store.gather(split, ids)
        labels = packed[:, 0].astype(np.float32)
        numeric = np.ascontiguousarray(packed[:, 1 : 1 + NUM_NUMERIC]).view(np.float32)
        categorical = np.ascontiguousarray(packed[:, 1 + NUM_NUMERIC :])
        return numeric, categorical, labels, None
