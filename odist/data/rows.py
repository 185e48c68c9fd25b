"""Memory-mapped row stores: one packed integer row per example, so a random gather is one cache walk.

A store is a folder: array files in NumPy's .npy format and `store.json`, the commit record, which is
written last. The task that reads the store and the preparation that made it know what a column means.

    store.json  format, task, fingerprint, fitted_fingerprint, columns, splits, fitted, options, report
    splits      name -> {"file": "rows.npy", "start": first row, "stop": row after the last}
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from odist.data.arrays import check_size, load_array
from odist.data.store import Store, damaged, open_record
from odist.errors import UserError

FORMAT = "odist-rows-1"
DTYPE = np.dtype("<i4")
KEYS_FILE = "keys.bin"  # of rows with a key that is text: the keys one after another
HEADER_BYTES = 128  # of every array file; fixed, so that the row count can be written when it is known


def npy_header(rows: int, columns: int) -> bytes:
    """Header of a version 1.0 .npy file of int32 [rows, columns], padded to HEADER_BYTES."""
    text = f"{{'descr': '{DTYPE.str}', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    prefix = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return prefix + text.ljust(HEADER_BYTES - 11).encode("latin-1") + b"\n"


class RowWriter:
    """Appends packed rows to one array file; memory does not grow with the number of rows.

    path: the .npy file
    columns: int32 values of a row
    rows: 0 begins a new file; otherwise an unclosed file is continued after this number of rows and cut off there
    """

    def __init__(self, path: Path, *, columns: int, rows: int = 0) -> None:
        self.path = path
        self.columns = columns
        self.rows = rows
        size = HEADER_BYTES + rows * columns * DTYPE.itemsize
        self._file = open(path, "r+b" if rows else "wb", buffering=0)  # noqa: SIM115 - closed by finish or __exit__
        if rows == 0:
            self._write(npy_header(0, columns))
        elif os.fstat(self._file.fileno()).st_size < size:
            self._file.close()
            raise UserError(
                f"{path}: shorter than the {rows:,} rows that its journal records. Remove {path.parent} and begin again."
            )
        self._file.truncate(size)
        self._file.seek(size)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: np.ndarray) -> None:
        """Add rows, int32 [n, columns]; OSError when the disk is full."""
        if rows.ndim != 2 or rows.shape[1] != self.columns or rows.dtype != DTYPE:
            raise ValueError(f"expected int32 [n, {self.columns}], got {rows.dtype} {list(rows.shape)}")
        if len(rows):
            self._write(np.ascontiguousarray(rows).data.cast("B"))
        self.rows += len(rows)

    def flush(self) -> None:
        """Bring what was appended to the disk itself."""
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the row count into the header, bring everything to the disk, close."""
        self._file.seek(0)
        self._write(npy_header(self.rows, self.columns))
        self.flush()
        self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):  # an unbuffered write may take only a part
            view = view[self._file.write(view) :]


class RowStore(Store[np.ndarray]):
    """A finished store, opened by `RowStore.open`, read-only."""

    @classmethod
    def open(cls, path: Path | str) -> RowStore:
        """Open the store in folder `path`. Raises UserError when it is missing, not a store of rows, or damaged."""
        path = Path(path)
        meta = open_record(path, FORMAT, command="odist prepare TASK")
        shape = (None, int(meta["columns"]))
        files = {
            name: load_array(path / name, dtype="int32", shape=shape)
            for name in {split["file"] for split in meta["splits"].values()}
        }
        arrays = {}
        for name, split in meta["splits"].items():
            rows, start, stop = files[split["file"]], split["start"], split["stop"]
            if not 0 <= start <= stop <= len(rows):
                raise damaged(path / split["file"], f"split {name} ends at row {stop:,}, the file at {len(rows):,}")
            arrays[name] = rows[start:stop]
        return cls(path, meta, arrays)

    def texts(self) -> np.ndarray:
        """The keys of the rows where those are text, uint8, mapped, as `odist.data.layout` says. UserError if they are damaged."""
        path = self.path / KEYS_FILE
        check_size(path, int(self.meta["key_bytes"]))
        return np.memmap(path, dtype=np.uint8, mode="r") if self.meta["key_bytes"] else np.empty(0, dtype=np.uint8)

    @property
    def columns(self) -> int:
        return int(self.meta["columns"])

    @property
    def fitted(self) -> dict[str, Any]:
        """What the preparation fitted on the training part."""
        return dict(self.meta["fitted"])

    def num_rows(self, split: str) -> int:
        """Rows of a split. Raises UserError when there is no such split."""
        return len(self._split(split))

    def gather(self, split: str, ids: np.ndarray) -> np.ndarray:
        """Copy rows out of the store.

        split: "train" or "validation"
        ids: integers [n], row numbers within the split; IndexError outside [0, num_rows)
        returns: int32 [n, columns], in the order of `ids`
        """
        rows = self._split(split)
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"row numbers must be integers, got {ids.dtype}")
        if not ids.size:
            return np.empty((0, self.columns), dtype=DTYPE)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= len(rows):
            raise IndexError(
                f"{self.path}: row {low if low < 0 else high} asked for, split {split} has {len(rows):,} rows"
            )
        # Checked above, so "clip" changes nothing; numpy's "raise" would copy through a second buffer.
        return np.take(rows, ids, axis=0, mode="clip")
