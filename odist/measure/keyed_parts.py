"""Two tables of predictions cut into parts by a hash of the column that names their rows, for a join in bounded memory.

The parts lie in a temporary folder if the tables are large, and are joined one after the other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.measure.prediction_tables import PredictionTable
from odist.measure.row_matching import refuse_others, refuse_unclear, unclear

if TYPE_CHECKING:
    import pandas as pd

PART_ROWS = 1 << 21  # rows of a part, which is joined in memory
PLACE = "place of the row"  # column of a part: the row's number in its own file


class KeyedParts:
    """Both tables in parts that hold the same keys. `read` them first, and close them.

    key: column that names the rows; columns: those to keep of either table
    batch_rows: rows read at once; part_rows: rows joined at once
    """

    def __init__(
        self,
        tables: tuple[PredictionTable, PredictionTable],
        key: str,
        *,
        columns: tuple[Sequence[str], Sequence[str]],
        batch_rows: int,
        part_rows: int = PART_ROWS,
    ) -> None:
        self.tables, self.key, self.columns = tables, key, columns
        self.batch_rows, self.part_rows = batch_rows, part_rows
        self._folder: Path | None = None
        self._parts: list[tuple[pd.DataFrame | Path, pd.DataFrame | Path]] = []
        self._as_text = False

    def close(self) -> None:
        """Remove what was written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def frames(self) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
        """The same rows of both, at most `batch_rows` at once."""
        for one, other in self._parts:
            first, second = _loaded(one), _loaded(other)
            second = second.iloc[self._keys(second).get_indexer(self._keys(first))]
            for start in range(0, len(first), self.batch_rows):
                yield first.iloc[start : start + self.batch_rows], second.iloc[start : start + self.batch_rows]

    def read(self) -> None:
        """Cut both tables. Raises UserError for keys that are missing, not unique or not in both."""
        num_parts = max(1, -(-max(table.num_rows for table in self.tables) // self.part_rows))
        if num_parts > 1:
            self._folder = Path(tempfile.mkdtemp(prefix="odist-churn-"))
        self._as_text = len({self._key_is_number(side) for side in (0, 1)}) > 1  # numbers in one file, words in another
        sides = [self._cut_table(side, num_parts) for side in (0, 1)]
        self._parts = list(zip(*sides, strict=True))
        self._check_keys()

    def _keys(self, frame: pd.DataFrame) -> pd.Index:
        import pandas as pd

        index = pd.Index(frame[self.key])
        return index.astype(str) if self._as_text else index

    def _key_is_number(self, side: int) -> bool:
        for frame in self.tables[side].pieces([self.key], rows=1):
            return bool(frame[self.key].dtype.kind in "biuf")
        return True

    def _cut_table(self, side: int, num_parts: int) -> list[pd.DataFrame | Path]:
        import pandas as pd

        kept: list[list[pd.DataFrame]] = [[] for _ in range(num_parts)]
        writers: list[Any] = [None] * num_parts
        start = 0
        for frame in self.tables[side].pieces(self.columns[side], rows=self.batch_rows):
            frame = frame.assign(**{PLACE: np.arange(start, start + len(frame))})
            start += len(frame)
            part = hashed(self._keys(frame).to_numpy()) % np.uint64(num_parts)
            for number in range(num_parts):
                own = frame[part == number] if num_parts > 1 else frame
                if self._folder is None:
                    kept[number].append(own)
                else:
                    writers[number] = _append(writers[number], self._folder / f"{side}-{number}.parquet", own)
        for writer in writers:
            if writer is not None:
                writer.close()
        if self._folder is not None:
            return [self._folder / f"{side}-{number}.parquet" for number in range(num_parts)]
        return [pd.concat(frames) if frames else pd.DataFrame() for frames in kept]

    def _check_keys(self) -> None:
        """Refuse keys that name no row or several, and rows that one of the two has alone."""
        found: list[dict[str, tuple[int, int, str]]] = [{}, {}]
        only: list[tuple[int, Any]] = [(0, None), (0, None)]
        for part in self._parts:
            frames = [_loaded(one) for one in part]
            indexes = [self._keys(frame) for frame in frames]
            for side, (frame, index) in enumerate(zip(frames, indexes, strict=True)):
                for what, (count, place, value) in unclear(index).items():
                    row = int(frame[PLACE].to_numpy()[place])
                    before = found[side].get(what, (0, row, value))
                    nearest = (row, value) if row < before[1] else before[1:]
                    found[side][what] = (before[0] + count, *nearest)
                alone = index.difference(indexes[1 - side], sort=False)
                if len(alone):
                    count, first = only[side]
                    only[side] = count + len(alone), alone[0] if first is None else first
        for table, wrong in zip(self.tables, found, strict=True):
            refuse_unclear(table.name, self.key, wrong)
        refuse_others((self.tables[0].name, self.tables[1].name), self.key, only)


def _loaded(part: pd.DataFrame | Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(part) if isinstance(part, Path) else part


def _append(writer: Any, path: Path, frame: pd.DataFrame) -> Any:
    """Write rows to a Parquet file, and return its writer."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(frame, preserve_index=False, schema=None if writer is None else writer.schema)
    writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
    writer.write_table(table)
    return writer


def hashed(values: np.ndarray) -> np.ndarray:
    """64 bits of each value, the same in every run."""
    import pandas as pd

    if values.dtype.kind in "biu":
        return np.asarray(pd.util.hash_array(values.astype(np.int64)))
    if values.dtype.kind != "f":
        values = values.astype(str).astype(object)
    return np.asarray(pd.util.hash_array(values))
