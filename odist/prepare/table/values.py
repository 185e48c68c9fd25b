"""The values of vocabulary columns while a table is read: each gets the number of its first appearance."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from odist.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

MOST_VALUES = 10_000_000  # of a column while it is read, and
MOST_KEPT = 1_000_000  # of those that are kept
MISSING = 0  # number of a missing value; others follow from 1


class Values:
    """Numbers of the values of some columns, which depend on the rows alone; kept in a file that only grows.

    path: of the file; columns: their names; length: bytes of the file that count, 0: a new file
    """

    def __init__(self, path: Path, columns: list[str], *, length: int = 0) -> None:
        self.columns = columns
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in columns}
        self._file: IO[bytes] = open(path, "r+b" if length else "w+b")  # noqa: SIM115 - closed by `close`
        self._file.truncate(length)
        for line in self._file:
            place, text = json.loads(line)
            own = self.numbers[columns[place]]
            own[text] = len(own) + 1

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self._file.tell()

    def numbered(self, name: str, values: pa.Array) -> np.ndarray:
        """Return the number of each value of a string array, int32 [n]; new ones are added."""
        import pyarrow.compute as pc

        coded = values.dictionary_encode()
        own, place, table = self.numbers[name], self.columns.index(name), []
        for text in coded.dictionary.to_pylist():
            number = own.get(text)
            if number is None:
                number = own[text] = len(own) + 1
                self._file.write(json.dumps([place, text]).encode() + b"\n")
            table.append(number)
        if len(own) > MOST_VALUES:
            raise UserError(
                f"the column {name!r} has more than {MOST_VALUES:,} values, too many for a vocabulary. Hash it: "
                "encoding: hash."
            )
        indices = pc.fill_null(coded.indices, len(table)).to_numpy(zero_copy_only=False)
        return np.array([*table, MISSING], dtype=np.int32)[indices]

    def flush(self) -> None:
        """Bring what was added to the disk itself."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def kept_values(numbers: dict[str, int], counts: np.ndarray, *, min_count: int, name: str) -> list[str]:
    """Return the values that a vocabulary keeps: those seen often enough in the training part, the most frequent first.

    counts: of each number in the training part; equally frequent values are in the order of their text
    """
    least = max(min_count, 1)
    found = [(-int(counts[number]), text) for text, number in numbers.items() if counts[number] >= least]
    if len(found) > MOST_KEPT:
        raise UserError(
            f"the column {name!r} has {len(found):,} values seen {least} times or more, too many for a vocabulary (at "
            f"most {MOST_KEPT:,}). Raise min_count, or hash it: encoding: hash."
        )
    return [text for _, text in sorted(found)]
