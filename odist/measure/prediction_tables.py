"""Predictions as tables that are read in pieces: CSV and Parquet files and URLs as they lie there, all else from memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from odist.errors import UserError
from odist.measure.churn import form_of
from odist.measure.prediction_files import PARQUET_SUFFIXES, SUFFIXES, is_url, opened, reading
from odist.measure.prediction_writer import frame_of, probability_columns
from odist.run.folder import Run

if TYPE_CHECKING:
    import pandas as pd

BATCH_ROWS = 1 << 17  # rows of a piece

Predicted = Any  # a path or URL of a run folder, CSV or Parquet, a DataFrame, or an array [rows] or [rows, classes]


class PredictionTable(Protocol):
    """One file of predictions, or what stands for one.

    name: for messages; columns: their names; num_rows: of all of it; notes: what a reader should know
    """

    name: str
    notes: list[str]

    @property
    def columns(self) -> list[str]: ...

    @property
    def num_rows(self) -> int: ...

    def pieces(self, columns: Sequence[str], *, rows: int) -> Iterator[pd.DataFrame]:
        """The rows in order, at most `rows` at once, with these columns only."""
        ...


@dataclass
class FrameTable:
    """A table in memory."""

    name: str
    frame: pd.DataFrame
    notes: list[str]

    @property
    def columns(self) -> list[str]:
        return list(map(str, self.frame.columns))

    @property
    def num_rows(self) -> int:
        return len(self.frame)

    def pieces(self, columns: Sequence[str], *, rows: int) -> Iterator[pd.DataFrame]:
        chosen = self.frame[list(columns)]
        for start in range(0, len(chosen), rows):
            yield chosen.iloc[start : start + rows]


class ParquetTable:
    """A Parquet file or URL, of which a few row groups at most are in memory. UserError if it cannot be read."""

    columns: list[str]
    num_rows: int

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        self.notes: list[str] = []
        self.path = path
        with reading(path), opened(path) as file:
            import pyarrow.parquet

            metadata = pyarrow.parquet.ParquetFile(file)
            self.columns = [name for name in metadata.schema_arrow.names if not name.startswith("__index_")]
            self.num_rows = int(metadata.metadata.num_rows)

    def pieces(self, columns: Sequence[str], *, rows: int) -> Iterator[pd.DataFrame]:
        import pyarrow.parquet

        with reading(self.path), opened(self.path) as file:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)  # which would keep the whole file in memory
            for batch in table.iter_batches(batch_size=rows, columns=list(columns), use_threads=False):
                yield batch.to_pandas(split_blocks=True)


class CsvTable:
    """A CSV file or URL, read piece by piece: once for its length and the types of its columns, and again for its rows.

    A column has one type in all pieces, so that a key which is a word in the last row is text in the first.
    UserError if it cannot be read.
    """

    columns: list[str]
    num_rows: int

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        self.notes: list[str] = []
        self.path = path
        self._types: dict[str, Any] = {}
        self.num_rows = 0
        for frame in self._read(BATCH_ROWS):
            self.num_rows += len(frame)
            for name, found in frame.dtypes.items():
                self._types[str(name)] = _common_type(self._types.get(str(name), found), found)
        self.columns = list(self._types)

    def pieces(self, columns: Sequence[str], *, rows: int) -> Iterator[pd.DataFrame]:
        for frame in self._read(rows, usecols=list(columns), dtype={name: self._types[name] for name in columns}):
            yield frame[list(columns)]

    def _read(self, rows: int, **options: Any) -> Iterator[pd.DataFrame]:
        import pandas as pd

        with reading(self.path), opened(self.path) as file:
            yield from pd.read_csv(file, chunksize=rows, **options)


def _common_type(first: Any, second: Any) -> Any:
    """The type that a column of pieces of these two types has as a whole: a number where all are numbers, else text."""
    if first is str or first == second:
        return first
    kinds = {first.kind, second.kind}
    if kinds <= {"i", "f"} or kinds <= {"u", "f"}:
        return np.result_type(first, second)
    return str


def open_table(
    given: Predicted, *, name: str, split: str = "validation", columns: Mapping[str, Any] | None = None
) -> PredictionTable:
    """Open predictions of any kind.

    given: a path or URL of a run folder, CSV or Parquet, a DataFrame, or probabilities [rows] or [rows, classes]
    name: of what has no path; split: of a run folder; columns: further ones of an array or DataFrame, each [rows]
    """
    if not isinstance(given, str | Path):
        return FrameTable(name, _frame(given, name, columns or {}), [])
    if columns:
        raise UserError(
            f"{given}: {', '.join(columns)} given as arrays, but the predictions are a file. Name its columns."
        )
    lower = str(given).lower()
    if is_url(given) or Path(given).is_file():
        if lower.endswith(PARQUET_SUFFIXES):
            return ParquetTable(given)
        return CsvTable(given)
    if lower.endswith(SUFFIXES):
        raise UserError(f"{given}: no such file.")
    run = Run.open(given)
    stored = run.predictions(split)
    form = form_of(stored.probabilities, stored.targets)
    frame = frame_of(
        stored.probabilities, targets=stored.targets, form=form, fingerprint=f"{split}-{stored.fingerprint[:12]}"
    )
    return FrameTable(str(given), frame, [words] if (words := run.missing_words()) else [])


def _frame(given: Any, name: str, columns: Mapping[str, Any]) -> pd.DataFrame:
    """A DataFrame, or arrays as the columns of one."""
    import pandas as pd

    if not isinstance(given, pd.DataFrame):
        probabilities = np.asarray(given, dtype=np.float64)
        if probabilities.ndim not in (1, 2) or not len(probabilities):
            raise UserError(
                f"{name}: expected a path, a DataFrame, or probabilities [rows] or [rows, classes], got an array of shape "
                f"{list(probabilities.shape)}."
            )
        given = pd.DataFrame(probability_columns(probabilities, form=form_of(probabilities, None)))
    wrong = [column for column, values in columns.items() if len(values) != len(given)]
    if wrong:
        raise UserError(f"{name}: {len(given):,} rows, but {wrong[0]} has {len(columns[wrong[0]]):,}.")
    return given.assign(**{column: np.asarray(values) for column, values in columns.items()}) if columns else given
