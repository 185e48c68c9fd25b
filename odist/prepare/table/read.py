"""Reading of a table: blocks of its files -> packed rows, appended in order, journalled.

Values of vocabulary columns are numbered as they appear; the fit, which knows the training part, makes ids of the numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from odist.data.layout import RowLayout
from odist.data.rows import KEYS_FILE, RowWriter
from odist.errors import Interrupted, UserError
from odist.prepare.job import ShowProgress, Stop
from odist.prepare.lines import read_ahead
from odist.prepare.rows import RowState
from odist.prepare.table.encode import TRANSFORM, Fault, Plain, plain_columns
from odist.prepare.table.input import Block, TableFile, is_number, kind_of, read_table
from odist.prepare.table.options import TableChoices, TableOptions
from odist.prepare.table.schema import TableSchema
from odist.prepare.table.values import Values

MAX_LOCATED = 10  # bad rows that the report locates
ROWS, VALUES = "rows.npy", "values.jsonl"  # in the work folder


@dataclass
class TableState(RowState):
    """How far the preparation of a table has come."""

    positives: list[int] = field(default_factory=list)  # by label
    missing: dict[str, int] = field(default_factory=dict)
    value_bytes: int = 0  # of the file of vocabulary values
    key_bytes: int = 0  # of the file of keys
    last_time: float | None = None
    in_order: bool = True  # by time, so far


def layout_of(schema: TableSchema, files: list[TableFile]) -> RowLayout:
    """Return the layout of the rows: the key is a number where the first file is Parquet with integers."""
    from pyarrow import types

    first = None if schema.key is None else files[0].types[schema.key]
    integer = first is not None and types.is_integer(first)
    return RowLayout(
        labels=len(schema.label),
        numeric=len(schema.numeric),
        categorical=len(schema.categorical),
        weight=schema.weight is not None,
        time=schema.time is not None,
        key=None if schema.key is None else "integer" if integer else "text",
    )


def time_kind_of(schema: TableSchema, files: list[TableFile]) -> str:
    """Tell whether the time column holds a "time" or a "number": by the type of the first file, or its first rows."""
    first = files[0]
    if schema.time is None or first.types.get(schema.time) is not None:
        return kind_of(first.types[schema.time]) if schema.time in first.types else "number"
    return "number" if all(map(is_number, first.sample.get(schema.time, []))) else "time"


class TableReader:
    """Reads from where `state` is to the end of the last file, and appends the rows to the array file.

    folder: of the store, for the keys; work: for everything else
    progress: told of every block; stop: polled after it; save: keeps the state
    """

    def __init__(
        self,
        folder: Path,
        work: Path,
        files: list[TableFile],
        *,
        schema: TableSchema,
        layout: RowLayout,
        labelled: bool,
        options: TableOptions,
        choices: TableChoices,
        state: TableState,
        progress: ShowProgress,
        stop: Stop,
        save: Callable[[], None],
    ) -> None:
        self.folder, self.work, self.files = folder, work, files
        self.schema, self.layout, self.labelled = schema, layout, labelled
        self.options, self.choices, self.state = options, choices, state
        self.progress, self.stop, self.save = progress, stop, save
        self.time_kind = time_kind_of(schema, files)
        self.total_bytes = sum(file.source.bytes for file in files)
        self._saved = time.monotonic()
        self._writer: RowWriter
        self._keys: IO[bytes]

    def run(self) -> Values:
        """Read on to the end and return the values of the vocabulary columns; Interrupted, with the state saved, when
        stopped before it."""
        state, schema = self.state, self.schema
        coded = [name for name, column in schema.categorical.items() if column.encoding == "vocabulary"]
        with ExitStack() as stack:
            self.values = Values(self.work / VALUES, coded, length=state.value_bytes)
            stack.callback(self.values.close)
            self._keys = stack.enter_context(_continued(self.folder / KEYS_FILE, state.key_bytes))
            writer = RowWriter(self.work / ROWS, columns=self.layout.columns, rows=state.rows)
            self._writer = stack.enter_context(writer)
            while state.source < len(self.files):
                self._read_source()
                state.source, state.offset, state.lines = state.source + 1, 0, 0
            self._flush()
            self._writer.finish()
        self.save()
        return self.values

    def _read_source(self) -> None:
        state, file = self.state, self.files[self.state.source]
        before = sum(file.source.bytes for file in self.files[: state.source])
        columns = [name for name, _ in self.schema.roles if name in file.types]
        blocks = read_table(file, columns, offset=state.offset, block_bytes=self.options.block_bytes)
        with closing(read_ahead(blocks, depth=2)) as ahead:
            for block in ahead:
                self._append(block, file)
                state.offset = block.offset
                state.lines += block.total
                self.progress("read", before + block.done, self.total_bytes, {"rows": state.rows})
                stopped = self.stop()
                if stopped or time.monotonic() - self._saved > self.options.journal_seconds:
                    self._flush()
                    self.save()
                    self._saved = time.monotonic()
                if stopped:
                    raise Interrupted("stopped")

    def _flush(self) -> None:
        # The journal must not tell of what a power cut could take.
        self._writer.flush()
        self._keys.flush()
        self.values.flush()
        self.state.value_bytes, self.state.key_bytes = self.values.length, self._keys.tell()

    def _append(self, block: Block, file: TableFile) -> None:
        state = self.state
        plain, faults = plain_columns(
            block.table,
            self.schema,
            self.layout,
            labelled=self.labelled,
            time_kind=self.time_kind,
            empty=block.empty,
        )
        if faults or block.unreadable:
            good = self._note_bad(block, file, faults)
            plain = plain.chosen(good)
        rows = self._packed(plain)
        self._writer.append(rows)
        state.rows += len(rows)
        state.source_rows[state.source] += len(rows)

    def _note_bad(self, block: Block, file: TableFile, faults: list[Fault]) -> np.ndarray:
        """Count and locate the unreadable rows, each by its first fault; which others are good, bool [rows]."""
        state = self.state
        good = np.ones(block.table.num_rows, dtype=np.bool_)
        reasons: dict[int, Callable[[], str]] = {}

        def missed(width: int) -> Callable[[], str]:
            return lambda: f"{width} columns instead of {len(file.types)}"

        def told(fault: Fault, row: int) -> Callable[[], str]:
            return lambda: "an empty line" if fault.reason == "empty" else fault.describe(block.table, row)

        for place, width in block.unreadable.items():
            state.bad["columns"] = state.bad.get("columns", 0) + 1
            reasons[place] = missed(width)
        for fault in faults:
            found = np.flatnonzero(fault.rows & good)
            good[found] = False
            if len(found):
                state.bad[fault.reason] = state.bad.get(fault.reason, 0) + len(found)
            reasons |= {int(block.places[row]): told(fault, int(row)) for row in found[:MAX_LOCATED]}
        for place in sorted(reasons)[: MAX_LOCATED - len(state.bad_locations)]:
            state.bad_locations.append(f"{file.place(state.lines + place)}: {reasons[place]()}")
        if self.choices.bad_rows == "refuse":
            bad, read = sum(state.bad.values()), state.rows + int(good.sum())
            raise UserError(
                f"{state.bad_locations[0]}. {bad:,} of the first {bad + read:,} rows {'is' if bad == 1 else 'are'} "
                "bad. Repair the file, or leave bad rows out with --bad-rows skip."
            )
        return good

    def _packed(self, plain: Plain) -> np.ndarray:
        layout, state, schema = self.layout, self.state, self.schema
        count = _num_rows(plain)
        rows = np.empty((count, layout.columns), dtype=np.int32)
        for place in range(layout.labels):
            rows[:, place] = -1 if plain.labels is None else plain.labels[place]
            if plain.labels is not None:
                state.positives[place] += int(plain.labels[place].sum())
        numeric = rows[:, layout.numeric_columns]
        for place, (name, values) in enumerate(plain.numeric.items()):
            state.missing[name] += int(np.isnan(values).sum())
            with np.errstate(over="ignore"):
                changed = TRANSFORM[schema.numeric[name].transform](values).astype(np.float32)
            numeric[:, place] = changed.view(np.int32)
        categorical = rows[:, layout.categorical_columns]
        for place, (name, cells) in enumerate(plain.categorical.items()):
            state.missing[name] += cells.null_count
            categorical[:, place] = self._ids(name, cells)
        if layout.weight:
            weight = np.ones(count) if plain.weight is None else plain.weight
            rows[:, layout.weight_columns] = weight.astype(np.float32).view(np.int32)[:, None]
        if layout.time:
            rows[:, layout.time_columns] = self._times(plain.time, count)
        if layout.key == "integer":
            rows[:, layout.key_columns] = plain.key.astype(np.int64).view(np.int32).reshape(-1, 2)
        elif layout.key == "text":
            rows[:, layout.key_columns] = self._texts(plain.key)
        return rows

    def _ids(self, name: str, cells: Any) -> np.ndarray:
        import pyarrow as pa

        from odist.prepare.table.hashing import hash_column

        column = self.schema.categorical[name]
        if column.encoding == "hash":
            return hash_column(cells, name=name, buckets=column.buckets or self.schema.buckets)
        try:
            words = cells.cast(pa.string())
        except pa.ArrowInvalid:
            words = pa.array(
                [cell if cell is None else cell.decode("utf-8", "replace") for cell in cells.to_pylist()], pa.string()
            )
        return self.values.numbered(name, words)

    def _times(self, times: np.ndarray | None, count: int) -> np.ndarray:
        state = self.state
        if times is None:
            times = np.zeros(count)
        if count:
            last = -math.inf if state.last_time is None else state.last_time
            state.in_order &= bool(times[0] >= last and (np.diff(times) >= 0).all())
            state.last_time = float(times[-1])
        return np.ascontiguousarray(times, dtype=np.float64).view(np.int32).reshape(-1, 2)

    def _texts(self, keys: Any) -> np.ndarray:
        cells = keys.to_pylist()
        lengths = np.array([len(cell) for cell in cells], dtype=np.int64)
        starts = self._keys.tell() + np.cumsum(lengths) - lengths
        self._keys.write(b"".join(cells))
        return np.concatenate([starts.view(np.int32).reshape(-1, 2), lengths.astype(np.int32)[:, None]], axis=1)


def _continued(path: Path, length: int) -> IO[bytes]:
    # A file to append to, cut off after `length` bytes.
    file = open(path, "r+b" if length else "wb")  # noqa: SIM115 - closed by the caller
    file.truncate(length)
    file.seek(length)
    return file


def _num_rows(plain: Plain) -> int:
    columns = [*plain.numeric.values(), *plain.categorical.values()]
    return len(columns[0])
