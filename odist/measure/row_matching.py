"""Find the same rows in the predictions of several retrains, and refuse predictions of different rows.

Rows are found by a column that names them where there is one, else by their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.errors import UserError
from odist.measure.prediction_files import ROW, Retrain, listed, num_rows

if TYPE_CHECKING:
    import pandas as pd

NAMES_ROWS = re.compile(r"(^|.*[_ .-])(id|ids|key|uuid|guid|index|idx|row)$", re.IGNORECASE)
JUDGED_ROWS = 1 << 17  # the first so many say whether a column looks like names of rows
OTHER_WAYS = "name the column that identifies rows with --key, or type --no-key to match rows by their order"


def match_rows(
    retrains: Sequence[Retrain], *, key: str | None = None, by_order: bool = False
) -> tuple[list[Retrain], list[str]]:
    """The retrains with their rows in one order, and notes on what a reader should know of how it was found.

    key: the column that names the rows; None: `row`, which `odist eval --output` writes, where all have it, else the
        order
    by_order: match by order whatever columns say
    Raises UserError when they are not the same rows, or when columns say that their order is another.
    """
    if key is not None and by_order:
        raise UserError(f"--key {key} and --no-key exclude each other: type one of them.")
    _check_data(retrains)
    first, notes = retrains[0], []
    chosen = key
    if key is None and not by_order:
        chosen = ROW if all(ROW in retrain.columns for retrain in retrains) else None
    if chosen is not None:
        matched = _matched(retrains, chosen)
    else:
        for retrain in retrains:
            if len(retrain.probabilities) != len(first.probabilities):
                raise UserError(
                    f"{retrain.path} has {num_rows(len(retrain.probabilities))}, {first.path} "
                    f"{len(first.probabilities):,}. Retrains are compared on the same rows."
                )
        matched = list(retrains)
        why = " (--no-key)" if by_order else ": the files have no common column that names them. --key names one"
        notes.append(f"Rows are matched by their order{why}.")
    if key is None and not by_order:
        if chosen is None:
            _check_row_numbers(retrains)
        notes += _check_shared_columns(matched, keyed=chosen is not None)
    return matched, notes


def _check_data(retrains: Sequence[Retrain]) -> None:
    """Refuse predictions that are known to be of different data."""
    known = [retrain for retrain in retrains if retrain.fingerprint is not None]
    for retrain in known[1:]:
        if retrain.fingerprint != known[0].fingerprint:
            raise UserError(
                f"{retrain.path} and {known[0].path} predict different rows (data fingerprints "
                f"{retrain.fingerprint} and {known[0].fingerprint}). Retrains are compared on one and the "
                "same split: evaluate both on the same data with `odist eval RUN --data DIR`."
            )


def _matched(retrains: Sequence[Retrain], key: str) -> list[Retrain]:
    """The retrains in the order of the first one's keys; of row numbers, in rising order."""
    keys = [_keys(retrain, key) for retrain in retrains]
    if len({index.dtype.kind in "biuf" for index in keys}) > 1:  # numbers in one file, words in another
        keys = [index.astype(str) for index in keys]
    order = np.argsort(keys[0].to_numpy(), kind="stable") if key == ROW else np.arange(len(keys[0]))
    wanted, first = keys[0][order], retrains[0]
    matched = []
    for retrain, index in zip(retrains, keys, strict=True):
        lacking, further = wanted.difference(index, sort=False), index.difference(wanted, sort=False)
        only = [(len(alone), alone[0] if len(alone) else None) for alone in (lacking, further)]
        refuse_others((str(first.path), str(retrain.path)), key, only)
        matched.append(retrain.ordered(index.get_indexer(wanted)))
    return matched


def refuse_others(paths: tuple[str, str], key: str, only: Sequence[tuple[int, Any]]) -> None:
    """Raise UserError for rows that one of two files has alone. only: of each, how many, and the key of the first"""
    parts = [
        f"{num_rows(count)} only in {own} (first: {key} {first})"
        for own, (count, first) in zip(paths, only, strict=True)
        if count
    ]
    if parts:
        raise UserError(
            f"{paths[0]} and {paths[1]} do not hold the same rows: {' and '.join(parts)}. Evaluate both on the same rows."
        )


def _keys(retrain: Retrain, key: str) -> pd.Index:
    """The values of the key column, which name each row once."""
    import pandas as pd

    if key not in retrain.columns:
        raise no_key(str(retrain.path), key, list(retrain.columns), is_run=bool(retrain.config))
    index = pd.Index(retrain.columns[key])
    refuse_unclear(str(retrain.path), key, unclear(index))
    return index


def no_key(path: str, key: str, columns: Sequence[str], *, is_run: bool) -> UserError:
    """The error for a file that has no column of that name."""
    runs = " Rows of a run folder are known by their number alone: `odist eval RUN --output FILE` writes a file."
    return UserError(f"{path}: no column {key!r} (--key). It has: {listed(columns)}.{runs if is_run else ''}")


def unclear(index: pd.Index) -> dict[str, tuple[int, int, str]]:
    """What keys do not name a row once: in words -> how many, the place of the first, and its value."""
    missing, repeated = np.asarray(index.isna()), np.asarray(index.duplicated())
    found = {}
    if missing.any():
        found["without one"] = (int(missing.sum()), int(np.argmax(missing)), "")
    twice = repeated & ~missing
    if twice.any():
        place = int(np.argmax(twice))
        found["with that of an earlier row"] = (int(twice.sum()), place, f" ({index[place]})")
    return found


def refuse_unclear(path: str, key: str, found: Mapping[str, tuple[int, int, str]]) -> None:
    """Raise UserError if there are keys as `unclear` finds them."""
    if found:
        wrong = [f"{num_rows(count)} {what}, first row {row}{value}" for what, (count, row, value) in found.items()]
        raise UserError(
            f"{path}: the key {key!r} does not name each row once: {'; '.join(wrong)}. Remove the rows, or {OTHER_WAYS}."
        )


def _check_row_numbers(retrains: Sequence[Retrain]) -> None:
    """Refuse to match by order a file whose own row numbers say that it is in another order."""
    lacking = [retrain for retrain in retrains if ROW not in retrain.columns]
    for retrain in retrains:
        numbers = retrain.columns.get(ROW)
        if numbers is not None and not np.array_equal(numbers, np.arange(len(numbers))):
            raise UserError(
                f"{retrain.path} numbers its rows in the column {ROW!r} in another order than they stand in, and "
                f"{lacking[0].path} has no such column. Add it there, {OTHER_WAYS}."
            )


def _check_shared_columns(retrains: Sequence[Retrain], *, keyed: bool) -> list[str]:
    """Refuse rows whose identifiers differ; notes on other columns that do."""
    first, notes = retrains[0], []
    for retrain in retrains[1:]:
        shared = SharedColumns(str(first.path), str(retrain.path), keyed=keyed)
        shared.add(first.columns, retrain.columns)
        notes += shared.finish()
    return notes


class SharedColumns:
    """Columns that two files have in common, compared row by row, in one piece or many.

    first, second: names of the files; keyed: rows were matched by `row`, so only what is called an identifier speaks against it
    """

    def __init__(self, first: str, second: str, *, keyed: bool) -> None:
        self.names, self.keyed = (first, second), keyed
        self.rows = 0
        self._differing: dict[str, tuple[int, int, Any, Any]] = {}  # how many, then the first: row, and both values
        self._seen: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        self._numbers: set[str] = set()

    def add(self, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
        """Compare the next rows."""
        count = 0
        for name, values in first.items():
            count = len(values)
            if name == ROW or name not in second:
                continue
            where = _unequal(values, second[name])
            if not self.keyed and self.rows < JUDGED_ROWS:
                sample = self._seen.setdefault(name, ([], []))
                for kept, own in zip(sample, (values, second[name]), strict=True):
                    kept.append(own[: JUDGED_ROWS - self.rows])
            if values.dtype.kind == "f":
                self._numbers.add(name)
            if where.any():
                at = int(np.argmax(where))
                before = self._differing.get(name, (0, self.rows + at, values[at], second[name][at]))
                self._differing[name] = (before[0] + int(where.sum()), *before[1:])
        self.rows += count

    def finish(self) -> list[str]:
        """Notes on columns that differ. Raises UserError where identifiers do."""
        first, second = self.names
        for name, (count, row, one, other) in self._differing.items():
            if NAMES_ROWS.fullmatch(name) or (not self.keyed and self._identifies(name)):
                raise UserError(
                    f"{first} and {second} disagree in the column {name!r} in {count:,} of "
                    f"{self.rows:,} rows, first in row {row} ({one} and {other}): "
                    f"these may not be the same rows. Type --key {name} to match rows by it, or --no-key to "
                    "match them by their order."
                )
        words = [name for name in self._differing if name not in self._numbers]
        return [f"{first} and {second} disagree in {listed(words)}: are these the same rows?"] if words else []

    def _identifies(self, name: str) -> bool:
        return _identifies(*(np.concatenate(kept) for kept in self._seen[name]))


def _unequal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which rows differ; two missing values are equal."""
    import pandas as pd

    missing = pd.isna(first) & pd.isna(second)
    if (first.dtype.kind in "biuf") != (second.dtype.kind in "biuf"):
        first, second = first.astype(str), second.astype(str)
    return np.asarray((first != second) & ~missing, dtype=bool)


def _identifies(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether differing values look like names of rows: mostly distinct, and no measurement unless only reordered."""
    import pandas as pd

    distinct = min(pd.Series(values).nunique() for values in (first, second))
    if distinct <= len(first) / 2:
        return False
    return first.dtype.kind != "f" or bool(np.array_equal(np.sort(first), np.sort(second), equal_nan=True))
