"""Files of a table, Parquet or text with a header, and their rows as blocks of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.config.suggest import choose
from odist.errors import UserError
from odist.prepare.inputs import InputFile, check_format
from odist.prepare.lines import first_lines, read_blocks, read_start
from odist.prepare.table.schema import TableSchema

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATORS = {"tsv": "\t", "csv": ","}
BOM = b"\xef\xbb\xbf"
PARQUET_ROW_BYTES = 64  # of block_bytes for each row: a batch of 16,384 rows at the default
SAMPLED_LINES = 100
OPTIONAL = ("label", "weight", "time")  # of rows without labels, which are there to be predicted


@dataclass(frozen=True)
class TableFile:
    """One source and its columns.

    types: pyarrow type of each column, None in a text file; start: unpacked bytes before its first row
    sample: of a text file: what its first rows have in each column, without what is missing
    """

    source: InputFile
    types: dict[str, Any]
    separator: str = ""
    start: int = 0
    sample: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        return bool(self.separator)

    def place(self, row: int) -> str:
        """Name row `row` (from 0; of a text file: line below the header)."""
        return f"{self.source.path}:{row + 2}" if self.is_text else f"{self.source.path}, row {row + 1}"


@dataclass
class Block:
    """Rows of one source.

    table: the wanted columns; places: int64 [rows] number of each row among those of the block, the unreadable included
    empty: bool [rows], whether a line is empty
    total: rows, the unreadable included; unreadable: number of each with how many columns it has
    offset: where the source goes on (unpacked bytes, or rows of Parquet); done: bytes of the file itself read so far
    """

    table: pa.Table
    places: np.ndarray
    empty: np.ndarray
    total: int
    unreadable: dict[int, int]
    offset: int
    done: int


def open_table(source: InputFile, *, format_name: str) -> TableFile:
    """Look at the columns of a source. format_name: auto | tsv | csv | parquet; UserError if it is no table."""
    check_format(source, format_name)
    if source.kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            schema = pyarrow.parquet.read_schema(source.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{source.path}: a Parquet file that cannot be read: {error}") from None
        return TableFile(source, {column.name: column.type for column in schema})
    start = read_start(source)
    skipped = len(BOM) if start.startswith(BOM) else 0
    lines = first_lines(start[skipped:])
    header = lines[0].decode("utf-8", "replace")
    if format_name == "auto":
        format_name = "tsv" if header.count("\t") >= header.count(",") and "\t" in header else "csv"
    separator = SEPARATORS[format_name]
    names = next(csv.reader([header], delimiter=separator), [])
    if not "".join(names).strip():
        raise UserError(f"{source.path}: its first line is empty; expected the names of the columns.")
    if not any(line for line in lines[1:]):
        raise UserError(f"{source.path}: a header and no rows.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{source.path}: two of its columns are called {twice!r}.")
    begin = start.index(b"\n", skipped) + 1
    sample: dict[str, list[str]] = {name: [] for name in names}
    texts = (line.decode("utf-8", "replace") for line in lines[1 : SAMPLED_LINES + 1])
    for row in csv.reader(texts, delimiter=separator):
        for name, text in zip(names, row, strict=False):
            if text.strip():
                sample[name].append(text.strip())
    return TableFile(source, dict.fromkeys(names), separator, begin, sample)


def check_columns(file: TableFile, schema: TableSchema, *, may_lack_labels: bool) -> bool:
    """Tell whether the rows have labels; UserError for a column that is missing or of a type that is not read."""
    labelled = not may_lack_labels or any(name in file.types for name in schema.label)
    for name, role in schema.roles:
        if name not in file.types and (labelled or role not in OPTIONAL):
            raise UserError(
                f"{file.source.path}: no column {name!r}, which the schema has below {role}. "
                f"{choose(name, file.types)} Names of a text file are those of its first line."
            )
        if kind_of(file.types.get(name)) == "other":
            raise UserError(f"{file.source.path}: the column {name!r} holds {file.types[name]}, which is not read.")
        if role in ("numeric", "label", "weight") and kind_of(file.types.get(name)) == "time":
            raise UserError(
                f"{file.source.path}: the column {name!r} below {role} holds {file.types[name]}, not numbers."
            )
    return labelled


def kind_of(arrow_type: Any) -> str:
    """What a column of a pyarrow type holds: number, text, time or other; None, of a text file, is text."""
    from pyarrow import types

    if arrow_type is None:
        return "text"
    if types.is_dictionary(arrow_type):
        return kind_of(arrow_type.value_type)
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_null)
    times = (types.is_timestamp, types.is_date)
    for name, tests in (("number", numbers), ("text", texts), ("time", times)):
        if any(test(arrow_type) for test in tests):
            return name
    return "other"


def read_table(file: TableFile, columns: Sequence[str], *, offset: int, block_bytes: int) -> Iterator[Block]:
    """Yield the rows in blocks, from `offset` (see `Block.offset`); 0 is the first row."""
    if file.is_text:
        for block in read_blocks(file.source, offset=max(offset, file.start), block_bytes=block_bytes):
            yield _parsed(file, columns, bytes(block.text), offset=block.offset, done=block.done)
    else:
        yield from _parquet_blocks(file, columns, first=offset, batch=max(1, block_bytes // PARQUET_ROW_BYTES))


def _parsed(file: TableFile, columns: Sequence[str], text: bytes, *, offset: int, done: int) -> Block:
    import pyarrow
    from pyarrow import csv as arrow_csv

    unreadable: dict[int, int] = {}

    def note(row: Any) -> str:
        unreadable[row.number - 1] = row.actual_columns
        return "skip"

    names = list(file.types)
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(text),
            read_options=arrow_csv.ReadOptions(use_threads=False, column_names=names, block_size=len(text) + 1),
            parse_options=arrow_csv.ParseOptions(
                delimiter=file.separator, ignore_empty_lines=False, invalid_row_handler=note
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.binary()),
                include_columns=list(columns),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file.source.path}: before unpacked byte {offset:,}: {error}") from None
    total = table.num_rows + len(unreadable)
    if total != text.count(b"\n"):
        raise UserError(
            f"{file.source.path}: before unpacked byte {offset:,} a quoted value goes on in the next line. Replace such "
            "line ends, or write the table as Parquet."
        )
    places = np.setdiff1d(np.arange(total), np.fromiter(unreadable, dtype=np.int64), assume_unique=True)
    content = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(content == ord("\n"))
    lengths = np.diff(ends, prepend=-1) - 1
    empty = (lengths == 0) | ((lengths == 1) & (content[ends - 1] == ord("\r")))
    return Block(table, places, empty[places], total, unreadable, offset, done)


def _parquet_blocks(file: TableFile, columns: Sequence[str], *, first: int, batch: int) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet

    source = file.source
    try:
        with pyarrow.parquet.ParquetFile(source.path) as parquet:
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = [group for group, end in enumerate(ends) if end > first]
            position = int(ends[-1]) - sum(sizes[group] for group in groups) if sizes else 0
            total = max(1, parquet.metadata.num_rows)
            for rows in parquet.iter_batches(batch_size=batch, row_groups=groups, columns=list(columns)):
                skipped = max(0, first - position)
                position += rows.num_rows
                if position > first:
                    table = pyarrow.Table.from_batches([rows]).slice(skipped)
                    places = np.arange(table.num_rows)
                    done = source.bytes * position // total
                    yield Block(table, places, np.zeros(len(places), np.bool_), len(places), {}, position, done)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{source.path}: a Parquet file that cannot be read: {error}") from None


def describe_columns(file: TableFile) -> dict[str, str]:
    """What every column of a file holds, for a draft: number, text, time or other; of text by its first rows."""
    if not file.is_text:
        return {name: kind_of(arrow_type) for name, arrow_type in file.types.items()}
    return {name: "number" if found and all(map(is_number, found)) else "text" for name, found in file.sample.items()}


def is_number(text: str) -> bool:
    """Tell whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
