"""Columns of a block to packed rows, and which rows are unreadable and why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.data.layout import RowLayout
from odist.prepare.table.input import kind_of
from odist.prepare.table.schema import TableSchema

if TYPE_CHECKING:
    import pyarrow as pa

MISSING_NUMBERS = ("nan", "NaN", "NAN", "null", "NULL", "None", "NA", "N/A", "\\N")
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "False": 0, "True": 1}


@dataclass(frozen=True)
class Fault:
    """Rows that cannot be used. reason: one word; rows: bool [n]; column: where; expected: what"""

    reason: str
    rows: np.ndarray
    column: str
    expected: str

    def describe(self, table: pa.Table, row: int) -> str:
        """Say what is wrong with a row."""
        value = table.column(self.column)[row].as_py()
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        shown = "nothing" if text is None else repr(text if len(str(text)) <= 40 else f"{str(text)[:40]}...")
        return f"{self.column}: {shown}, expected {self.expected}"


@dataclass
class Plain:
    """A block's columns as numbers and text, each [n]; labels and weight are None where the source has none."""

    labels: list[np.ndarray] | None
    numeric: dict[str, np.ndarray]  # float64, NaN where missing
    categorical: dict[str, pa.Array]  # binary, null where missing
    weight: np.ndarray | None
    time: np.ndarray | None
    key: Any  # int64 array, or a binary array

    def chosen(self, rows: np.ndarray) -> Plain:
        """The same of some rows, bool [n]."""
        import pyarrow as pa

        mask = pa.array(rows)
        integer = isinstance(self.key, np.ndarray)
        return Plain(
            None if self.labels is None else [values[rows] for values in self.labels],
            {name: values[rows] for name, values in self.numeric.items()},
            {name: values.filter(mask) for name, values in self.categorical.items()},
            None if self.weight is None else self.weight[rows],
            None if self.time is None else self.time[rows],
            None if self.key is None else self.key[rows] if integer else self.key.filter(mask),
        )


def plain_columns(
    table: pa.Table, schema: TableSchema, layout: RowLayout, *, labelled: bool, time_kind: str, empty: np.ndarray
) -> tuple[Plain, list[Fault]]:
    """Read the columns of a block, and find its unreadable rows.

    time_kind: number or time; empty: bool [n], which lines of a text file are empty
    """
    faults: list[Fault] = []

    def column(name: str) -> pa.Array:
        chunks = table.column(name)
        array = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
        return array.dictionary_decode() if hasattr(array, "dictionary_decode") else array

    def note(reason: str, rows: np.ndarray, name: str, expected: str) -> None:
        if rows.any():
            faults.append(Fault(reason, rows, name, expected))

    note("empty", empty, table.column_names[0], "a row")
    labels = None
    if labelled:
        labels = []
        for name in schema.label:
            values, bad = label_values(column(name))
            note("label", bad, name, "0 or 1")
            labels.append(values)
    numeric = {}
    for name in schema.numeric:
        numeric[name], bad = numbers(column(name))
        note("numeric", bad, name, "a finite number")
    weight = time = key = None
    if schema.weight is not None and schema.weight in table.column_names:
        weight, bad = numbers(column(schema.weight))
        note("weight", bad | ~(weight > 0), schema.weight, "a number above 0")
    if schema.time is not None and schema.time in table.column_names:
        time, bad = (times if time_kind == "time" else numbers)(column(schema.time))
        note("time", bad | np.isnan(time), schema.time, "a time such as 2024-05-31 or 2024-05-31 10:00:00" if time_kind == "time" else "a number")  # fmt: skip
    if schema.key is not None:
        key, bad = _integers(column(schema.key)) if layout.key == "integer" else _key_texts(column(schema.key))
        note("key", bad, schema.key, "a whole number" if layout.key == "integer" else "text")
    categorical = {name: texts(column(name)) for name in schema.categorical}
    return Plain(labels, numeric, categorical, weight, time, key), faults


def _nulls(array: pa.Array) -> np.ndarray:
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def numbers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 values, NaN where missing, and which cells are no finite number."""
    import pyarrow as pa
    from pyarrow import compute as pc

    if kind_of(array.type) == "number":
        values = _floats(array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array)
        return values, np.isinf(values)
    words = pc.utf8_trim_whitespace(_decoded(array))
    missing = pc.or_(pc.is_in(words, pa.array(["", *MISSING_NUMBERS])), words.is_null())
    words = pc.if_else(missing, None, words)
    try:
        values, bad = _floats(words.cast(pa.float64())), np.zeros(len(words), dtype=np.bool_)
    except pa.ArrowInvalid:  # only then one by one
        values = np.array([_number(word) for word in words.to_pylist()])
        bad = np.isnan(values) & ~_nulls(words)
    return values, bad | np.isinf(values)


def _number(word: str | None) -> float:
    import pyarrow as pa

    try:
        return math.nan if word is None else float(pa.scalar(word).cast(pa.float64()).as_py())
    except pa.ArrowInvalid:
        return math.nan


def _floats(array: pa.Array) -> np.ndarray:
    import pyarrow as pa

    values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float64)


def label_values(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int32, and which cells are neither 0 nor 1."""
    import pyarrow as pa
    from pyarrow import compute as pc

    if kind_of(array.type) == "number":
        values, _ = numbers(array)
    else:
        words = pc.utf8_trim_whitespace(_decoded(array))
        known = pc.index_in(words, pa.array(list(LABELS)))
        codes = np.array([*LABELS.values(), math.nan])
        values = codes[pc.fill_null(known, len(LABELS)).to_numpy(zero_copy_only=False)]
    bad = ~((values == 0) | (values == 1))
    return np.where(bad, -1, values).astype(np.int32), bad


def times(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return microseconds since 1970 in UTC, float64, NaN where missing, and which cells are no time."""
    import pyarrow as pa
    from pyarrow import compute as pc

    if kind_of(array.type) != "time":
        words = pc.utf8_trim_whitespace(_decoded(array))
        words = pc.if_else(pc.equal(words, ""), None, words)
        array = None
        for zone in (None, "UTC"):  # without and with a zone in the text
            try:
                array = words.cast(pa.timestamp("us", tz=zone))
                break
            except pa.ArrowInvalid:
                continue
        if array is None:
            values = np.array([_microseconds(word) for word in words.to_pylist()])
            return values, np.isnan(values) & ~_nulls(words)
    zone = array.type.tz if pa.types.is_timestamp(array.type) else None
    return _floats(array.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())), np.zeros(len(array), np.bool_)


def _microseconds(word: str | None) -> float:
    try:
        parsed = None if word is None else datetime.fromisoformat(word)
    except ValueError:
        parsed = None
    if parsed is None:
        return math.nan
    aware = parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return float((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _decoded(array: pa.Array) -> pa.Array:
    """A text column as strings; bytes that are no UTF-8 become the replacement character."""
    import pyarrow as pa

    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        cells = (cell if cell is None else bytes(cell).decode("utf-8", "replace") for cell in array.to_pylist())
        return pa.array(cells, type=pa.string())


def texts(array: pa.Array) -> pa.Array:
    """Return a column as text, binary, null where missing or empty; whole numbers are written without a fraction."""
    import pyarrow as pa
    from pyarrow import compute as pc

    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
        whole = pc.fill_null(pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**53)), False)
        integers = pc.if_else(whole, array, 0.0).cast(pa.int64(), safe=False).cast(pa.string())
        array = pc.if_else(array.is_null(), None, pc.if_else(whole, integers, array.cast(pa.string())))
    elif not pa.types.is_binary(array.type):
        array = array.cast(pa.binary()) if pa.types.is_large_binary(array.type) else array.cast(pa.string())
    array = array.cast(pa.binary())
    return pc.if_else(pc.equal(pc.binary_length(array), 0), None, array)


def _key_texts(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    import pyarrow as pa

    found = texts(array)
    try:
        found.cast(pa.string())
    except pa.ArrowInvalid:
        found = _decoded(found).cast(pa.binary())
    return found, _nulls(found)


def _integers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    from pyarrow import compute as pc

    try:
        whole = array.cast(pa.string()).cast(pa.int64()) if kind_of(array.type) == "text" else array.cast(pa.int64())
    except pa.ArrowInvalid:
        whole = pa.array([_whole(cell) for cell in array.to_pylist()], type=pa.int64())
    return pc.fill_null(whole, 0).to_numpy(zero_copy_only=False), _nulls(whole)


def _whole(cell: Any) -> int | None:
    try:
        number = int(cell)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 2**63 and number == float(cell) else None


def log_transform(values: np.ndarray) -> np.ndarray:
    """Return sign(x) log1p(|x|)."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


TRANSFORM: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log": log_transform,
    "standard": lambda values: values,
    "none": lambda values: values,
}
