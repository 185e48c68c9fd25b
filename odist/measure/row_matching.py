"""Find the same rows in the predictions of several retrains, and refuse predictions of different rows.

Rows are found by a column that names them where there is one, else by their order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from odist.errors import UserError
from odist.measure.prediction_files import ROW, Retrain, listed, num_rows

if TYPE_CHECKING:
    import pandas as pd

NAMES_ROWS = re.compile(r"(^|.*[_ .-])(id|ids|key|uuid|guid|index|idx|row)$", re.IGNORECASE)
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
        parts = [
            f"{num_rows(len(only))} only in {own.path} (first: {key} {only[0]})"
            for own, only in ((first, lacking), (retrain, further))
            if len(only)
        ]
        if parts:
            raise UserError(
                f"{first.path} and {retrain.path} do not hold the same rows: {' and '.join(parts)}. "
                "Evaluate both on the same rows."
            )
        matched.append(retrain.ordered(index.get_indexer(wanted)))
    return matched


def _keys(retrain: Retrain, key: str) -> pd.Index:
    """The values of the key column, which name each row once."""
    import pandas as pd

    if key not in retrain.columns:
        runs = " Rows of a run folder are known by their number alone: `odist eval RUN --output FILE` writes a file."
        raise UserError(
            f"{retrain.path}: no column {key!r} (--key). It has: {listed(retrain.columns)}."
            f"{runs if retrain.config else ''}"
        )
    index = pd.Index(retrain.columns[key])
    missing, repeated = index.isna(), index.duplicated()
    wrong = [
        f"{num_rows(int(mask.sum()))} {what}, first row {int(np.argmax(mask))}{value}"
        for mask, what, value in (
            (missing, "without one", ""),
            (repeated & ~missing, "with that of an earlier row", f" ({index[int(np.argmax(repeated & ~missing))]})"),
        )
        if mask.any()
    ]
    if wrong:
        raise UserError(
            f"{retrain.path}: the key {key!r} does not name each row once: {'; '.join(wrong)}. "
            f"Remove the rows, or {OTHER_WAYS}."
        )
    return index


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
    """Refuse rows whose identifiers differ; notes on other columns that do.

    keyed: rows were matched by `row`, so only what is called an identifier speaks against it
    """
    first, notes = retrains[0], []
    for retrain in retrains[1:]:
        differing = {}
        for name in first.columns:
            if name in retrain.columns and name != ROW:
                where = _unequal(first.columns[name], retrain.columns[name])
                if where.any():
                    differing[name] = where
        for name, where in differing.items():
            values = first.columns[name]
            if NAMES_ROWS.fullmatch(name) or (not keyed and _identifies(values, retrain.columns[name])):
                row = int(np.argmax(where))
                raise UserError(
                    f"{first.path} and {retrain.path} disagree in the column {name!r} in {int(where.sum()):,} of "
                    f"{len(where):,} rows, first in row {row} ({values[row]} and {retrain.columns[name][row]}): "
                    f"these may not be the same rows. Type --key {name} to match rows by it, or --no-key to "
                    "match them by their order."
                )
        words = [name for name in differing if first.columns[name].dtype.kind != "f"]
        if words:
            notes.append(f"{first.path} and {retrain.path} disagree in {listed(words)}: are these the same rows?")
    return notes


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
