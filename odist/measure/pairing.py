"""The same rows of two tables of predictions, in pieces, in bounded memory.

Rows are matched by their order, or by a column that names them. Where both files are sorted by it, in the same rows, they
are read side by side; else both are cut into parts by a hash of the key, in a temporary folder if they are large, and the
parts are joined one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.errors import UserError
from odist.measure.churn import Form
from odist.measure.keyed_parts import PART_ROWS, PLACE, KeyedParts
from odist.measure.prediction_files import FINGERPRINT, ROW, Retrain, find_layout, listed, num_rows, predictions_in
from odist.measure.prediction_tables import PredictionTable
from odist.measure.row_matching import (
    NAMES_ROWS,
    SharedColumns,
    no_key,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Pairs:
    """The same rows of both.

    rows: [n] their numbers in the old table; names: [n] what names a row, for draws: its key, or its number
    targets: [n] labels, None where neither knows them; columns: of the old table, each [n]
    """

    old: np.ndarray
    new: np.ndarray
    rows: np.ndarray
    names: np.ndarray
    targets: np.ndarray | None
    columns: Mapping[str, np.ndarray]


class PairedTables:
    """Two tables, matched: `pieces` may be read several times. Close it, or use it in a with statement.

    wanted: columns of the old table that are given with the rows
    Raises UserError when they are not the same rows, or when columns say that their order is another.
    """

    def __init__(
        self,
        old: PredictionTable,
        new: PredictionTable,
        *,
        column: Sequence[str] = (),
        target: str | None = None,
        wanted: Sequence[str] = (),
        key: str | None = None,
        by_order: bool = False,
        batch_rows: int,
        part_rows: int = PART_ROWS,
    ) -> None:
        self.tables = (old, new)
        self.layouts = tuple(
            find_layout(table.columns, table.name, column=column, target=target) for table in self.tables
        )
        self.form: Form = self.layouts[0].form
        if self.layouts[1].form is not self.form:
            raise UserError(f"{old.name} holds the {self.form.value}, {new.name} the {self.layouts[1].form.value}.")
        if len(self.layouts[0].names) != len(self.layouts[1].names):
            raise UserError(
                f"{new.name} predicts {len(self.layouts[1].names)} classes, {old.name} {len(self.layouts[0].names)}."
            )
        if key is not None and by_order:
            raise UserError(f"--key {key} and --no-key exclude each other: type one of them.")
        self.notes: list[str] = [note for table in self.tables for note in table.notes]
        self.batch_rows, self.part_rows = batch_rows, part_rows
        self.given_key, self.by_order = key, by_order
        self.key = key
        if key is None and not by_order and all(ROW in table.columns for table in self.tables):
            self.key = ROW
        self.wanted = list(wanted)
        self._parts: KeyedParts | None = None
        try:
            self._match()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PairedTables:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was written."""
        if self._parts is not None:
            self._parts.close()

    @property
    def num_rows(self) -> int:
        return self.tables[0].num_rows

    def pieces(self) -> Iterator[Pairs]:
        """The rows, at most `batch_rows` at once."""
        start = 0
        for first, second in self._both():
            place = first.columns[ROW] if self.key == ROW else first.columns.get(PLACE)
            rows = np.arange(start, start + len(first.probabilities)) if place is None else place
            start += len(rows)
            if first.targets is not None and second.targets is not None:
                self._check_labels(first, second, rows)
            yield Pairs(
                old=first.probabilities,
                new=second.probabilities,
                rows=rows,
                names=rows if self.key is None else first.columns[self.key],
                targets=first.targets if first.targets is not None else second.targets,
                columns={name: self._column(first, name) for name in self.wanted},
            )

    def _column(self, retrain: Retrain, name: str) -> np.ndarray:
        return np.asarray(retrain.targets if name == self.layouts[0].target else retrain.columns[name])

    def _check_labels(self, first: Retrain, second: Retrain, rows: np.ndarray) -> None:
        differ = np.flatnonzero(np.asarray(first.targets) != np.asarray(second.targets))
        if len(differ):
            hint = "Name a column that identifies the rows with --key." if self.key is None else "Evaluate both again."
            raise UserError(
                f"{second.path} and {first.path} disagree on the label of {len(differ)} rows, first of "
                f"row {int(rows[differ[0]])}: these are not the same rows in the same order. {hint}"
            )

    def _match(self) -> None:
        """Find out how rows correspond, and refuse those that do not."""
        old, new = self.tables
        if self.key is None:
            if old.num_rows != new.num_rows:
                raise UserError(
                    f"{new.name} has {num_rows(new.num_rows)}, {old.name} {old.num_rows:,}. "
                    "Retrains are compared on the same rows."
                )
            why = (
                " (--no-key)" if self.by_order else ": the files have no common column that names them. --key names one"
            )
            self.notes.append(f"Rows are matched by their order{why}.")
            if not self.by_order:
                self._check_row_numbers()
        else:
            for table in self.tables:
                if self.key not in table.columns:
                    raise no_key(table.name, self.key, table.columns, is_run=False)
            if not self._sorted_alike():
                self._parts = KeyedParts(
                    self.tables,
                    self.key,
                    columns=(self._columns(0, shared=True), self._columns(1, shared=True)),
                    batch_rows=self.batch_rows,
                    part_rows=self.part_rows,
                )
                self._parts.read()
        if self.given_key is None and not self.by_order:
            shared = SharedColumns(old.name, new.name, keyed=self.key is not None)
            for first, second in self._both(shared=True):
                shared.add(_visible(first), _visible(second))
            self.notes += shared.finish()

    def _check_row_numbers(self) -> None:
        """Refuse to match by order a file whose own row numbers say that it is in another order."""
        lacking = next(table for table in self.tables if ROW not in table.columns)
        for table in self.tables:
            start = 0
            for frame in table.pieces([ROW], rows=self.batch_rows) if ROW in table.columns else ():
                if not np.array_equal(frame[ROW].to_numpy(), np.arange(start, start + len(frame))):
                    raise UserError(
                        f"{table.name} numbers its rows in the column {ROW!r} in another order than they stand in, and "
                        f"{lacking.name} has no such column. Add it there, name the column that identifies rows with "
                        "--key, or type --no-key to match rows by their order."
                    )
                start += len(frame)

    def _sorted_alike(self) -> bool:
        """Whether both hold the same keys, each larger than the one before."""
        old, new = self.tables
        if old.num_rows != new.num_rows:
            return False
        assert self.key is not None
        last: Any = None
        for first, second in _in_step(*(table.pieces([self.key], rows=self.batch_rows) for table in self.tables)):
            one, other = first[self.key].to_numpy(), second[self.key].to_numpy()
            if one.dtype != other.dtype or one.dtype.kind == "f" or not np.array_equal(one, other):
                return False
            try:
                if (last is not None and not one[0] > last) or not bool((one[1:] > one[:-1]).all()):
                    return False
            except TypeError:  # of missing values
                return False
            last = one[-1]
        return True

    def _columns(self, side: int, *, shared: bool) -> list[str]:
        """The columns to read of the old (0) or the new (1) table."""
        table, layout = self.tables[side], self.layouts[side]
        target = [] if layout.target is None else [layout.target]
        chosen = dict.fromkeys([*layout.names, *target])
        if self.key is not None:
            chosen[self.key] = None
        if side == 0:
            chosen |= dict.fromkeys(self.wanted)
        if FINGERPRINT in table.columns:
            chosen[FINGERPRINT] = None
        if shared:
            common = [name for name in table.columns if name in self.tables[1 - side].columns and name != ROW]
            # Of rows with a key only what is called an identifier speaks against it.
            chosen |= dict.fromkeys(name for name in common if self.key is None or NAMES_ROWS.fullmatch(name))
        return list(chosen)

    def _parsed(self, side: int, frame: pd.DataFrame, *, first: int) -> Retrain:
        table, layout = self.tables[side], self.layouts[side]
        return predictions_in(frame, table.name, layout=layout, first=first)

    def _both(self, *, shared: bool = False) -> Iterator[tuple[Retrain, Retrain]]:
        """The same rows of both, piece by piece."""
        known: dict[str, str] = {}
        for number, (one, other) in enumerate(self._frames(shared=shared)):
            pair = (
                self._parsed(0, one, first=number * self.batch_rows),
                self._parsed(1, other, first=number * self.batch_rows),
            )
            for retrain in pair:
                if retrain.fingerprint is not None:
                    known.setdefault(retrain.fingerprint, str(retrain.path))
            if len(known) > 1:
                (mine, my_file), (theirs, their_file) = list(known.items())[:2]
                raise UserError(
                    f"{their_file} and {my_file} predict different rows (data fingerprints "
                    f"{theirs} and {mine}). Retrains are compared on one and the "
                    "same split: evaluate both on the same data with `odist eval RUN --data DIR`."
                )
            for retrain in pair:
                _check_probabilities(retrain)
            yield pair

    def _frames(self, *, shared: bool) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
        if self._parts is None:
            pieces = (
                table.pieces(self._columns(side, shared=shared), rows=self.batch_rows)
                for side, table in enumerate(self.tables)
            )
            yield from _in_step(*pieces)
            return
        yield from self._parts.frames()


def _visible(retrain: Retrain) -> dict[str, np.ndarray]:
    return {name: values for name, values in retrain.columns.items() if name != PLACE}


def _check_probabilities(retrain: Retrain) -> None:
    p = retrain.probabilities
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(p), -1).any(axis=1)))
        raise UserError(
            f"{retrain.path}: not a probability in {int(wrong.sum())} places, such as "
            f"{p[row] if p.ndim == 1 else p[row][wrong[row]][0]}. Expected numbers from 0 to 1, not logits."
        )


def _in_step(
    first: Iterator[pd.DataFrame], second: Iterator[pd.DataFrame]
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Two streams of rows in pieces of equal lengths."""
    held: list[pd.DataFrame | None] = [None, None]
    streams = (first, second)
    while True:
        for side in (0, 1):
            if held[side] is None or not len(held[side]):  # type: ignore[arg-type]
                held[side] = next((frame for frame in streams[side] if len(frame)), None)
        one, other = held
        if one is None or other is None:
            return
        count = min(len(one), len(other))
        yield one.iloc[:count], other.iloc[:count]
        held = [one.iloc[count:], other.iloc[count:]]


def check_columns(table: PredictionTable, names: Mapping[str, str | None]) -> None:
    """Raise UserError for a column that a table lacks. names: option -> the column it names, None for none"""
    for option, name in names.items():
        if name is not None and name not in table.columns:
            raise UserError(f"{option} {name}: {table.name} has no such column. Choose among: {listed(table.columns)}.")
