"""What Criteo input files look like, and their rows as blocks of text for kernels.parse_rows.

Criteo ships tab-separated rows without header: label (train.txt only), I1 to I13 (integers), C1 to C26
(8 hexadecimal digits), empty where missing. Also met: comma-separated exports with a header and integers
printed as floats, and Parquet. Parquet becomes tab-separated text, so that there is one parser.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from odist.errors import UserError
from odist.prepare.inputs import InputFile, check_format
from odist.prepare.lines import TextBlock, first_lines, read_blocks, read_start

NUMERIC = tuple(f"I{number}" for number in range(1, 14))
CATEGORICAL = tuple(f"C{number}" for number in range(1, 27))
FEATURES = NUMERIC + CATEGORICAL
SEPARATORS = {"tsv": b"\t", "csv": b","}
BOM = b"\xef\xbb\xbf"
PARQUET_ROW_BYTES = 64  # of block_bytes for each row: a batch of 16,384 rows at the default


@dataclass(frozen=True)
class RowLayout:
    """How the rows of one source are written.

    start: unpacked bytes before the first row; header_lines: lines before it
    """

    separator: int
    labelled: bool
    start: int = 0
    header_lines: int = 0


def find_row_layout(source: InputFile, *, format_name: str) -> RowLayout:
    """Look at the first rows of `source`; UserError when they are not Criteo rows.

    format_name: auto | tsv | csv | parquet
    """
    check_format(source, format_name)
    if source.kind == "parquet":
        return RowLayout(ord("\t"), labelled=_parquet_columns(source)[0].lower() == "label")
    start = read_start(source)
    skipped = len(BOM) if start.startswith(BOM) else 0
    if b"\r" in start.rstrip() and b"\n" not in start:
        raise UserError(
            f"{source.path}: its lines end in CR alone, as on old Macintoshes; expected LF or CR LF. "
            "Convert it: tr '\\r' '\\n' < FILE > NEWFILE"
        )
    lines = [line for line in first_lines(start[skipped:]) if line]
    if not lines:
        raise UserError(f"{source.path}: holds no lines.")
    tabs, commas = (sum(line.count(mark) for line in lines) for mark in (b"\t", b","))
    separator = SEPARATORS[format_name if format_name != "auto" else "tsv" if tabs >= commas else "csv"]
    names = [name.strip(b' "').decode("latin-1").lower() for name in lines[0].split(separator)]
    if "i1" in names:
        expected = [name.lower() for name in FEATURES]
        if names not in (expected, ["label", *expected]):
            raise UserError(
                f"{source.path}: its header names other columns. Expected label, I1 to I13, C1 to C26, in this order."
            )
        if len(lines) == 1:
            raise UserError(f"{source.path}: a header and no rows.")
        after = start.index(b"\n", skipped) + 1
        return RowLayout(separator[0], labelled=names[0] == "label", start=after, header_lines=1)
    widths = Counter(line.count(separator) + 1 for line in lines)
    labelled, unlabelled = widths[len(FEATURES) + 1], widths[len(FEATURES)]
    if not labelled and not unlabelled:
        raise UserError(
            f"{source.path}: not Criteo rows: line 1 has {lines[0].count(separator) + 1} columns between "
            f"{'tabs' if separator == SEPARATORS['tsv'] else 'commas'}, expected 40 (label, 13 integers, 26 "
            "categories) or 39 (without label). An archive (.tar.gz) has to be unpacked first."
        )
    return RowLayout(separator[0], labelled=labelled >= unlabelled, start=skipped)


def read_rows(source: InputFile, layout: RowLayout, *, offset: int, block_bytes: int) -> Iterator[TextBlock]:
    """Yield blocks of text rows, from `offset` (see TextBlock.offset); 0 is the first row."""
    if source.kind == "parquet":
        return _parquet_blocks(source, first=offset, batch=max(1, block_bytes // PARQUET_ROW_BYTES))
    return read_blocks(source, offset=max(offset, layout.start), block_bytes=block_bytes)


def _parquet_columns(source: InputFile) -> list[str]:
    # The file's own names of the columns, in Criteo's order; the label first where there is one.
    import pyarrow
    import pyarrow.parquet

    try:
        present = {name.lower(): name for name in pyarrow.parquet.read_schema(source.path).names}
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{source.path}: a Parquet file that cannot be read: {error}") from None
    lacking = [name for name in FEATURES if name.lower() not in present]
    if lacking:
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise UserError(f"{source.path}: lacks the columns {shown}. Expected label (if known), I1 to I13, C1 to C26.")
    wanted = [*(["label"] if "label" in present else []), *FEATURES]
    return [present[name.lower()] for name in wanted]


def _parquet_blocks(source: InputFile, *, first: int, batch: int) -> Iterator[TextBlock]:
    import datasets
    import pyarrow
    import pyarrow.parquet

    columns = _parquet_columns(source)
    try:
        num_rows = max(1, pyarrow.parquet.read_metadata(source.path).num_rows)
        # Not load_dataset, which counts its calls at the hub.
        rows = datasets.Dataset.from_parquet(str(source.path), columns=columns, streaming=True)
        position = 0
        for table in rows.with_format("arrow").iter(batch_size=batch):
            position += table.num_rows
            if position > first:
                wanted = table.slice(max(0, first - (position - table.num_rows)))
                yield TextBlock(_text(wanted.select(columns)), position, source.bytes * position // num_rows)
    except (pyarrow.ArrowException, OSError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"{source.path}: a Parquet file that cannot be read: {error}") from None


def _text(table: Any) -> bytes:
    # The rows as tab-separated lines, one for each row.
    import pyarrow
    import pyarrow.csv

    first = len(table.column_names) - len(FEATURES)
    arrays = [_column(table.column(i), is_hex=i >= first + len(NUMERIC)) for i in range(len(table.column_names))]
    text = io.BytesIO()
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    plain = pyarrow.table(arrays, names=table.column_names)
    try:
        pyarrow.csv.write_csv(plain, text, options)
    except pyarrow.ArrowInvalid:  # a tab, quote or line end within a string: only then this slower way
        clean = [_without_marks(array) if pyarrow.types.is_string(array.type) else array for array in arrays]
        text = io.BytesIO()
        pyarrow.csv.write_csv(pyarrow.table(clean, names=table.column_names), text, options)
    return text.getvalue()


def _without_marks(array: Any) -> Any:
    # "?" is in no column allowed, so the parser refuses the row and tells where it is.
    import pyarrow.compute

    return pyarrow.compute.replace_substring_regex(array, pattern='[\t\r\n,"]', replacement="?")


def _column(column: Any, *, is_hex: bool) -> Any:
    # As integers or strings, nulls where missing; integers of a categorical column as hexadecimal digits.
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
        try:
            array = array.cast(pa.int64())
        except pa.ArrowInvalid:  # fractions: the parser refuses those rows
            return array.cast(pa.string())
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if pa.types.is_integer(array.type):
        return _hexadecimal(array) if is_hex else array
    return array.cast(pa.string())


def _hexadecimal(array: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    outside = pc.fill_null(pc.or_(pc.less(array, 0), pc.greater(array, 0xFFFFFFFF)), False)
    values = pc.if_else(outside, 0, pc.fill_null(array, 0)).cast(pa.int64()).to_numpy(zero_copy_only=False)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = digits[(values[:, None] >> np.arange(28, -4, -4)) & 15]
    strings = pa.array(np.ascontiguousarray(text).view("S8").ravel(), type=pa.binary()).cast(pa.string())
    return pc.if_else(pc.is_null(array), pa.scalar(None, pa.string()), pc.if_else(outside, "?", strings))
