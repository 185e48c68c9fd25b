"""What tasks of numbered rows share: which rows a group reads, which are evaluated, and `data.holdout=tuning`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from odist.config.schema import Config, DataConfig
from odist.data.order import Order, SequentialOrder, Shares, ShuffledOrder
from odist.errors import UserError

TUNING_SHARE = 8  # data.holdout=tuning evaluates at most the last 1/8 of the training rows and trains on the others


class RowSource(Protocol):
    """Rows by number.

    first_row: of the training part; streams: whether disjoint parts of the data lie one after another instead of sharing
        the rows
    """

    fingerprint: str
    fitted_fingerprint: str
    first_row: int
    streams: bool

    def num_rows(self, split: str) -> int: ...


def num_read(data: DataConfig, total: int) -> int:
    """Training rows that are read of `total`. Raises UserError where data.first_row lies behind them."""
    if data.first_row and data.first_row >= total:
        raise UserError(
            f"data.first_row={data.first_row}: there are {total:,} training rows, numbered from 0. Type a smaller number."
        )
    left = total - data.first_row
    return min(left, data.max_rows or left)


class RowTask:
    """The part of `odist.tasks.base.Task` that depends on nothing but the number of rows.

    config: of the run; source: where the rows come from
    """

    def __init__(self, config: Config, source: RowSource) -> None:
        self.config = config
        self.fingerprint = source.fingerprint
        self.fitted_fingerprint = source.fitted_fingerprint
        self._rows = source

    def num_rows(self, split: str) -> int:
        return self._rows.num_rows(split)

    def _shares(self) -> Shares:
        data = self.config.data
        rows, first = self.num_rows("train"), self._rows.first_row
        return Shares(data.partition, data.parts, data.seed, rows=rows, streams=self._rows.streams, first=first)

    def shuffled(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> ShuffledOrder:
        """The order in which a group reads its training rows."""
        return self._shares().order(group=group, num_groups=num_groups, examples_per_step=examples_per_step, seed=seed)

    def order(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> Order:
        return self.shuffled(group=group, num_groups=num_groups, examples_per_step=examples_per_step, seed=seed)

    def distinct_rows(self, *, num_groups: int, examples: int) -> int:
        return self._shares().distinct(num_groups=num_groups, examples=examples)

    def evaluation_order(self, split: str, *, rows: int | None, batch_size: int) -> SequentialOrder:
        total = self.num_rows(split)
        first = self._rows.first_row if split == "train" else 0
        return SequentialOrder(min(rows or total, total), batch_size, first=first)


class SyntheticOptions(Protocol):
    """The options of a generator, a dataclass."""

    rows: int
    validation_rows: int


class SyntheticRows:
    """Rows of a generator: `rows` of one pass, and the same number for every further disjoint stream.

    name: of the generator and its version; options: the task's `synthetic` node
    shown: what else of the configuration changes what the rows look like, but not what their labels mean
    """

    streams = True

    def __init__(self, name: str, options: SyntheticOptions, data: DataConfig, *, shown: Sequence[Any] = ()) -> None:
        self.validation_rows = options.validation_rows
        self.validation_split = data.holdout
        self.first_row, self.train_rows = data.first_row, num_read(data, options.rows)
        made_by: dict[str, Any] = asdict(options)  # type: ignore[call-overload]
        del made_by["rows"]  # more of one stream is the same data, evaluated on the same rows
        self.fingerprint = generator_fingerprint(name, data.seed, data.holdout, *shown, made_by)
        del made_by["validation_rows"]  # which rows are evaluated changes no meaning
        self.fitted_fingerprint = generator_fingerprint(name, data.seed, made_by)

    def num_rows(self, split: str) -> int:
        return self.train_rows if split == "train" else self.validation_rows

    def drawn(self, split: str) -> str:
        """The generator's name for a split: what is evaluated is `validation` or `tuning`."""
        return split if split == "train" else self.validation_split


class PreparedRows:
    """Rows of a prepared store.

    train, validation: its rows of either split; fingerprint: of the store
    most_tuning: rows that data.holdout=tuning evaluates at most, None for TUNING_SHARE alone
    """

    streams = False

    def __init__(
        self,
        data: DataConfig,
        *,
        train: int,
        validation: int,
        fingerprint: str,
        fitted_fingerprint: str,
        most_tuning: int | None = None,
    ) -> None:
        self.tuning = data.holdout == "tuning"
        self.fingerprint = tuning_fingerprint(fingerprint) if self.tuning else fingerprint
        self.fitted_fingerprint = fitted_fingerprint
        share = train // TUNING_SHARE
        num_tuning = share if most_tuning is None else max(1, min(share, most_tuning))
        self.tuning_start = train - num_tuning if self.tuning else train
        self.first_row, self.train_rows = data.first_row, num_read(data, self.tuning_start)
        self.validation_rows = num_tuning if self.tuning else validation

    def num_rows(self, split: str) -> int:
        return self.train_rows if split == "train" else self.validation_rows

    def stored(self, rows: np.ndarray, split: str) -> tuple[np.ndarray, str]:
        """Where rows of a split lie in the store: their numbers, and its split."""
        if split == "validation" and self.tuning:
            return rows + self.tuning_start, "train"
        return rows, split


def generator_fingerprint(*content: Any) -> str:
    """Name the data of a generator by JSON-able content: SHA-256 of its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tuning_fingerprint(fingerprint: str) -> str:
    """Name the data of a store of which other rows are evaluated than its validation split."""
    return hashlib.sha256(f"{fingerprint} tuning".encode()).hexdigest()
