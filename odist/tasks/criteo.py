"""Click prediction on Criteo's 13 integer and 26 categorical columns, prepared or synthetic.

Source: Anil et al. 2018, section 3.1. What the paper leaves open and we chose: integers on a log scale,
normalised by the training part, zero and a flag where missing; categoricals hashed into one table.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from odist import registry
from odist.config.schema import Config, CriteoConfig
from odist.data.order import Order, SequentialOrder, Shares
from odist.data.rows import RowStore
from odist.errors import UserError
from odist.losses import LossOptions, Soft, Sums, binary
from odist.measure.metrics import BinaryMetrics, binary_results
from odist.tasks.base import Batch, Carry
from odist.tasks.synthetic_criteo import NUM_CATEGORICAL, NUM_NUMERIC, SyntheticCriteo

TUNING_SHARE = 8  # data.holdout=tuning: the last 1/8 of the training rows is evaluated and not trained on
PRIOR_ROWS = 65_536  # rows from which the click rate is counted

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


class Source(Protocol):
    """Rows by number: numeric [n, 13], ids [n, 26], labels [n], true probabilities [n] or None."""

    fingerprint: str
    fitted_fingerprint: str
    num_ids: int
    numeric_mean: np.ndarray
    numeric_std: np.ndarray
    streams: bool  # whether disjoint parts lie one after another instead of sharing the rows

    def num_rows(self, split: str) -> int: ...

    def rows(self, ids: np.ndarray, split: str) -> Columns: ...


class CriteoTask:
    """The click task; see `odist.tasks.base.Task` for the methods."""

    main_metric = "log_loss"

    def __init__(self, config: Config) -> None:
        self.config = config
        synthetic = config.data.name == "synthetic"
        self.source: Source = SyntheticSource(config) if synthetic else PreparedSource(config)
        self.fingerprint = self.source.fingerprint
        self.fitted_fingerprint = self.source.fitted_fingerprint
        self.loss_options = LossOptions.of(config.algorithm)

    def build_model(self) -> nn.Module:
        options = {key: value for key, value in asdict(self.config.model).items() if key != "name"}
        build = registry.find("models", self.config.model.name)
        model: nn.Module = build(2 * NUM_NUMERIC, NUM_CATEGORICAL, buckets=self.source.num_ids, **options)
        return model

    def num_rows(self, split: str) -> int:
        return self.source.num_rows(split)

    def _shares(self) -> Shares:
        data = self.config.data
        return Shares(data.partition, data.parts, data.seed, rows=self.num_rows("train"), streams=self.source.streams)

    def order(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> Order:
        return self._shares().order(group=group, num_groups=num_groups, examples_per_step=examples_per_step, seed=seed)

    def distinct_rows(self, *, num_groups: int, examples: int) -> int:
        return self._shares().distinct(num_groups=num_groups, examples=examples)

    def evaluation_order(self, split: str, *, rows: int | None, batch_size: int) -> SequentialOrder:
        total = self.num_rows(split)
        return SequentialOrder(min(rows or total, total), batch_size)

    def batch(self, ids: np.ndarray, split: str, seed: int) -> Batch:
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


class SyntheticSource:
    """Rows of the generator; `rows` of a pass and as many more for every further disjoint stream."""

    streams = True

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, CriteoConfig)
        self.options = config.task.synthetic
        self.holdout = config.data.holdout
        self.train_rows = min(self.options.rows, config.data.max_rows or self.options.rows)
        self.generator = SyntheticCriteo(self.options, seed=config.data.seed)
        self.num_ids = self.generator.num_ids
        self.numeric_mean, self.numeric_std = self.generator.numeric_mean, self.generator.numeric_std
        # Without the number of training rows: more of one stream is the same data, evaluated on the same rows.
        made_by = {key: value for key, value in asdict(self.options).items() if key != "rows"}
        named = json.dumps(["synthetic-criteo-1", config.data.seed, self.holdout, made_by], sort_keys=True)
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()
        del made_by["validation_rows"]  # which rows are evaluated changes no meaning
        fitted = json.dumps(["synthetic-criteo-1", config.data.seed, made_by], sort_keys=True)
        self.fitted_fingerprint = hashlib.sha256(fitted.encode()).hexdigest()

    def num_rows(self, split: str) -> int:
        return self.train_rows if split == "train" else self.options.validation_rows

    def rows(self, ids: np.ndarray, split: str) -> Columns:
        return self.generator.rows(ids, split if split == "train" else self.holdout)


class PreparedSource:
    """Rows of a store made by `odist prepare criteo`."""

    streams = False

    def __init__(self, config: Config) -> None:
        data = config.data
        self.store = RowStore.open(Path(str(data.path)))
        if self.store.task != "criteo":
            raise UserError(f"data.path={data.path}: a store of task {self.store.task!r}, expected criteo.")
        self.fingerprint, self.fitted_fingerprint = self.store.fingerprint, self.store.fitted_fingerprint
        fitted = self.store.meta["fitted"]
        self.numeric_mean = np.asarray(fitted["numeric_mean"], dtype=np.float32)
        self.numeric_std = np.asarray(fitted["numeric_std"], dtype=np.float32)
        self.num_ids = int(self.store.meta["options"]["buckets"])
        self.tuning = data.holdout == "tuning"
        if self.tuning:  # other rows are evaluated
            self.fingerprint = hashlib.sha256(f"{self.fingerprint} tuning".encode()).hexdigest()
        whole = self.store.num_rows("train")
        kept = whole - whole // TUNING_SHARE if self.tuning else whole
        self.tuning_start = kept
        self.train_rows = min(kept, data.max_rows or kept)

    def num_rows(self, split: str) -> int:
        if split == "train":
            return self.train_rows
        return self.store.num_rows("train") - self.tuning_start if self.tuning else self.store.num_rows("validation")

    def rows(self, ids: np.ndarray, split: str) -> Columns:
        if split == "validation" and self.tuning:
            ids, split = ids + self.tuning_start, "train"
        packed = self.store.gather(split, ids)
        labels = packed[:, 0].astype(np.float32)
        numeric = np.ascontiguousarray(packed[:, 1 : 1 + NUM_NUMERIC]).view(np.float32)
        categorical = np.ascontiguousarray(packed[:, 1 + NUM_NUMERIC :])
        return numeric, categorical, labels, None
