"""Memory-mapped row stores: one packed integer row per example, so a random gather is one cache walk.

A store is a folder: array files in NumPy's .npy format and `store.json`, the commit record, which is
written last. What a column means is left to the task that reads the store and to the preparation that
made it; this module knows folders, files and shapes.

    store.json  format, task, fingerprint, fitted_fingerprint, columns, splits, fitted, options, report
    splits      name -> {"file": "rows.npy", "start": first row, "stop": row after the last}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from odist.errors import UserError

FORMAT = "odist-rows-1"
DTYPE = np.dtype("<i4")
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
    rows: 0 begins a new file; more continues an unclosed file after so many rows and cuts off the rest
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
            raise UserError(f"{path}: shorter than the {rows:,} rows its journal tells of. Remove {path.parent} and begin again.")  # fmt: skip
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


def open_record(path: Path, expected: str, *, command: str) -> dict[str, Any]:
    """Read the store.json of a finished store of format `expected`.

    command: what makes such a store, for the message. UserError when the folder is missing, unfinished,
    no store, or of another format.
    """
    meta = read_record(path)
    if meta is None:
        if not path.exists():
            raise UserError(f"{path}: no such folder. Make it with `{command} --input FILE --output {path}`.")
        partial = path.name.endswith(".partial")
        why = "an unfinished preparation; the same `odist prepare` command completes it" if partial else (
            f"not a prepared store (it has no store.json); name a folder made by `{command}`")  # fmt: skip
        raise UserError(f"{path}: {why}.")
    if meta.get("format") != expected:
        raise UserError(f"{path}: its format is {meta.get('format')!r}, expected {expected!r}. "
                        f"Name a folder made by `{command}`, or prepare it again.")  # fmt: skip
    return meta


class RowStore:
    """A finished store, opened by `RowStore.open`; reads rows, writes nothing."""

    def __init__(self, path: Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.path = path
        self.meta = meta
        self._arrays = arrays

    @classmethod
    def open(cls, path: Path | str) -> RowStore:
        """Open the store in folder `path`; UserError when it is missing, no store, or damaged."""
        path = Path(path)
        meta = open_record(path, FORMAT, command="odist prepare TASK")
        files = {name: _map(path / name, int(meta["columns"])) for name in {s["file"] for s in meta["splits"].values()}}
        arrays = {}
        for name, split in meta["splits"].items():
            if not 0 <= split["start"] <= split["stop"] <= len(files[split["file"]]):
                raise _damaged(path / split["file"], f"split {name} ends at row {split['stop']:,}, the file at {len(files[split['file']]):,}")  # fmt: skip
            arrays[name] = files[split["file"]][split["start"] : split["stop"]]
        return cls(path, meta, arrays)

    @property
    def task(self) -> str:
        return str(self.meta["task"])

    @property
    def columns(self) -> int:
        return int(self.meta["columns"])

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    @property
    def fingerprint(self) -> str:
        """Names rows, order, options and fitted parts."""
        return str(self.meta["fingerprint"])

    @property
    def fitted_fingerprint(self) -> str:
        """Names what gives ids and values their meaning; a model may be used on every store with the same."""
        return str(self.meta["fitted_fingerprint"])

    @property
    def fitted(self) -> dict[str, Any]:
        """What the preparation fitted on the training part; the task gives it its meaning."""
        return dict(self.meta["fitted"])

    def num_rows(self, split: str) -> int:
        """Rows of a split; UserError when there is no such split."""
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

    def _split(self, split: str) -> np.ndarray:
        if split not in self._arrays:
            raise UserError(f"{self.path}: no split {split!r}; it has {', '.join(self._arrays)}.")
        return self._arrays[split]


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of `path`/store.json, None without one; UserError when it cannot be read."""
    record = path / "store.json"
    if not record.is_file():
        return None
    try:
        meta = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(record, f"not JSON ({error})") from None
    if not isinstance(meta, dict) or "format" not in meta:
        raise UserError(f"{record}: not the record of a prepared store. Name a folder made by `odist prepare`.")
    return meta


def _map(path: Path, columns: int) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = (
                np.lib.format.read_array_header_1_0(file) if version == (1, 0) else ((), True, DTYPE)
            )
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise _damaged(path, "the file is missing") from None
    except ValueError as error:
        raise _damaged(path, f"no array file ({error})") from None
    if fortran or dtype != DTYPE or len(shape) != 2 or shape[1] != columns:
        raise _damaged(path, f"expected int32 rows of {columns} columns, found {dtype} {list(shape)}")
    if size != start + shape[0] * columns * DTYPE.itemsize:
        raise _damaged(path, f"{size:,} bytes instead of {start + shape[0] * columns * DTYPE.itemsize:,}")
    if shape[0] == 0:  # nothing to map
        return np.empty((0, columns), dtype=DTYPE)
    return np.asarray(np.memmap(path, dtype=DTYPE, mode="r", offset=start, shape=(int(shape[0]), columns)))


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path}: damaged: {why}. Remove the folder {path.parent} and run `odist prepare` again.")
