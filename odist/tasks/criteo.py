"""Click prediction on numeric and categorical columns: Criteo's, synthetic or prepared, or those of any prepared table.

Source: Anil et al. 2018, section 3.1. The paper does not say how columns are encoded; our choice: integers on a log
scale, normalised by the training part, zero and a flag where missing; categoricals hashed into one table.
A table may have several labels, a logit each: the loss is the mean over the labels, and predictions have one entry for each
label of a row. Its weights count in the loss and in the metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from odist import registry
from odist.config.schema import Config, CriteoConfig
from odist.data.layout import RowLayout, keys_of, viewed
from odist.data.rows import RowStore
from odist.errors import UserError
from odist.losses import LossOptions, Soft, Sums, binary
from odist.measure.exact import binary_results, label_results
from odist.measure.metrics import BinaryMetrics, LabelMetrics
from odist.tasks.base import Batch, Carry
from odist.tasks.rows import PreparedRows, RowSource, RowTask, SyntheticRows
from odist.tasks.synthetic_criteo import SyntheticCriteo

PRIOR_ROWS = 65_536  # rows from which the click rate is counted


@dataclass(frozen=True)
class Columns:
    """Rows by column.

    numeric: float32 [n, numeric], NaN where missing; categorical: ids int32 [n, categorical]
    labels: float32 [n, labels], below 0 where unknown; weights: float32 [n], None: all 1
    bayes: [n] true probabilities where the generator knows them
    """

    numeric: np.ndarray
    categorical: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    bayes: np.ndarray | None = None


class Source(RowSource, Protocol):
    """Rows by number, of `layout`; names of their labels."""

    num_ids: int
    numeric_mean: np.ndarray
    numeric_std: np.ndarray
    layout: RowLayout
    label_names: list[str]

    def rows(self, ids: np.ndarray, split: str) -> Columns: ...

    def weights(self, split: str) -> np.ndarray | None:
        """Weights [rows] of a split, None: all 1."""
        ...

    def keys(self, split: str, *, ids: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What names the rows of a split, [rows], by column; {} where nothing does. ids: of the rows; None: all"""
        ...


class CriteoTask(RowTask):
    """The click task; see `odist.tasks.base.Task` for the methods."""

    main_metric = "log_loss"

    def __init__(self, config: Config) -> None:
        synthetic = config.data.name == "synthetic"
        self.source: Source = SyntheticSource(config) if synthetic else PreparedSource(config)
        super().__init__(config, self.source)
        self.loss_options = LossOptions.of(config.algorithm)
        if self.num_labels > 1 and getattr(config.algorithm, "distribution", None) == "unigram":
            raise UserError(
                f"algorithm.distribution=unigram: the rate of one label, and data.path={config.data.path} has "
                f"{self.num_labels}. Type algorithm.distribution=uniform."
            )

    def build_model(self) -> nn.Module:
        options = {key: value for key, value in asdict(self.config.model).items() if key != "name"}
        if self.num_labels > 1:
            options["labels"] = self.num_labels
        layout, build = self.source.layout, registry.find("models", self.config.model.name)
        model: nn.Module = build(2 * layout.numeric, layout.categorical, buckets=self.source.num_ids, **options)
        return model

    @property
    def num_labels(self) -> int:
        return self.source.layout.labels

    def batch(self, ids: np.ndarray, split: str) -> Batch:
        return self.batch_of(self.source.rows(ids, split))

    def batch_of(self, rows: Columns) -> Batch:
        """A batch of rows as a source has them."""
        missing = np.isnan(rows.numeric)
        scaled = (rows.numeric - self.source.numeric_mean) / self.source.numeric_std
        both = np.concatenate([np.where(missing, np.float32(0), scaled), missing], axis=1, dtype=np.float32)
        targets = torch.from_numpy(rows.labels)
        weights = torch.ones(len(targets)) if rows.weights is None else torch.from_numpy(rows.weights)
        return Batch(
            (torch.from_numpy(both), torch.from_numpy(rows.categorical)),
            targets if self.num_labels > 1 else targets[:, 0],
            weights[:, None].expand_as(targets).contiguous() if self.num_labels > 1 else weights,
            None if rows.bayes is None else torch.from_numpy(rows.bayes),
        )

    def forward(self, model: nn.Module, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        return model(*batch.inputs), None

    def loss(self, logits: Tensor, batch: Batch, soft: Soft | None = None) -> Sums:
        return binary(logits, batch.targets, weights=batch.weights, options=self.loss_options, soft=soft)

    def metrics(self) -> BinaryMetrics | LabelMetrics:
        return BinaryMetrics() if self.num_labels == 1 else LabelMetrics(self.source.label_names)

    def probabilities(self, logits: Tensor, batch: Batch) -> Tensor:
        return torch.sigmoid(logits).flatten()

    def results(
        self, probabilities: np.ndarray, targets: np.ndarray, *, bayes: np.ndarray | None, split: str
    ) -> dict[str, Any]:
        weights = self.source.weights(split)
        if self.num_labels == 1:
            return binary_results(probabilities, targets, bayes=bayes, weights=weights)
        both = (values.reshape(-1, self.num_labels) for values in (probabilities, targets))
        return label_results(*both, names=self.source.label_names, weights=weights)

    def row_columns(self, split: str, *, ids: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Columns that name the entries of a split's predictions: a key of the table, and the label where there are several.

        ids: of the rows; None: all
        """
        keys = self.source.keys(split, ids=ids)
        if self.num_labels == 1:
            return keys
        names = np.tile(
            np.array(self.source.label_names, dtype=object), self.num_rows(split) if ids is None else len(ids)
        )
        return {name: np.repeat(values, self.num_labels) for name, values in keys.items()} | {"label_name": names}

    def prior(self) -> Tensor:
        ids = self.source.first_row + np.arange(min(PRIOR_ROWS, self.num_rows("train")), dtype=np.int64)
        rows = self.source.rows(ids, "train")
        if rows.weights is None:
            return torch.tensor(float(rows.labels.ravel().mean()))
        return torch.tensor(float(np.average(rows.labels.mean(axis=1), weights=rows.weights)))


class SyntheticSource(SyntheticRows):
    """Rows of the generator."""

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, CriteoConfig)
        super().__init__("synthetic-criteo-1", config.task.synthetic, config.data)
        self.generator = SyntheticCriteo(config.task.synthetic, seed=config.data.seed)
        self.num_ids = self.generator.num_ids
        self.numeric_mean, self.numeric_std = self.generator.numeric_mean, self.generator.numeric_std
        self.layout, self.label_names = RowLayout(), ["label"]

    def rows(self, ids: np.ndarray, split: str) -> Columns:
        numeric, categorical, labels, bayes = self.generator.rows(ids, self.drawn(split))
        return Columns(numeric, categorical, labels[:, None], bayes=bayes)

    def weights(self, split: str) -> None:
        return None

    def keys(self, split: str, *, ids: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {}


class PreparedSource(PreparedRows):
    """Rows of a store made by `odist prepare criteo` or `odist prepare table`."""

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
        self.num_ids = int(fitted["num_ids"] if "num_ids" in fitted else store.meta["options"]["buckets"])
        self.layout = RowLayout.of(store.meta)
        self.label_names = list(fitted.get("labels", ["label"]))

    def rows(self, ids: np.ndarray, split: str) -> Columns:
        ids, split = self.stored(ids, split)
        return self.unpacked(self.store.gather(split, ids))

    def unpacked(self, packed: np.ndarray) -> Columns:
        """Packed rows, int32 [n, columns], as columns."""
        layout = self.layout
        labels = packed[:, : layout.labels].astype(np.float32)
        numeric = viewed(packed, layout.numeric_columns, "<f4")
        categorical = np.ascontiguousarray(packed[:, layout.categorical_columns])
        weights = viewed(packed, layout.weight_columns, "<f4")[:, 0] if layout.weight else None
        return Columns(numeric, categorical, labels, weights)

    def weights(self, split: str) -> np.ndarray | None:
        if not self.layout.weight:
            return None
        return self._of_split(split, lambda rows: viewed(rows, self.layout.weight_columns, "<f4")[:, 0])

    def keys(self, split: str, *, ids: np.ndarray | None = None) -> dict[str, np.ndarray]:
        if self.layout.key is None:
            return {}
        texts = self.store.texts() if self.layout.key == "text" else None

        def read(rows: np.ndarray) -> np.ndarray:
            return keys_of(rows, self.layout, texts)

        if ids is None:
            keys = self._of_split(split, read)
        else:
            within, stored = self.stored(ids, split)
            keys = read(self.store.gather(stored, within))
        return {str(self.store.meta["schema"]["key"]): keys}

    def _of_split(self, split: str, read: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What `read` makes of the packed rows of a whole split, a part at a time."""
        begin = self.first_row if split == "train" else 0
        stop = begin + self.num_rows(split)
        parts = []
        for first in range(begin, stop, PRIOR_ROWS):
            ids, stored = self.stored(np.arange(first, min(first + PRIOR_ROWS, stop)), split)
            parts.append(read(self.store.gather(stored, ids)))
        return np.concatenate(parts)
