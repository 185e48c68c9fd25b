"""Files of predictions, CSV or Parquet, as `odist eval --output` and `odist predict` write them: whole, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from odist.errors import UserError
from odist.files import check_writable, replacing
from odist.measure.churn import Form
from odist.measure.prediction_files import FINGERPRINT, OF_LABEL, ROW

if TYPE_CHECKING:
    import pandas as pd

ROWS_AT_ONCE = 1 << 16  # that are gathered before they are written


class PredictionWriter:
    """A .csv or .parquet file that is written piece by piece and appears whole, or not at all where its block fails.

    Small pieces are gathered, up to ROWS_AT_ONCE, so that a Parquet file has row groups of a useful size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = contextlib.ExitStack()
        self._parquet: Any = None
        self._begun = False
        self._held: list[pd.DataFrame] = []
        self._num_held = 0

    def __enter__(self) -> PredictionWriter:
        try:
            self._partial = self._stack.enter_context(replacing(self.path))
            self._partial.touch()
        except OSError as error:
            raise _not_written(self.path, error) from error
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            try:
                if error is None:
                    self._flush()
                if self._parquet is not None:
                    self._parquet.close()
            except BaseException as failed:
                self._stack.__exit__(type(failed), failed, failed.__traceback__)
                raise
            self._stack.__exit__(kind, error, trace)
        except OSError as failed:
            if failed is error:
                raise
            raise _not_written(self.path, failed) from failed

    def write(self, columns: pd.DataFrame | Mapping[str, np.ndarray]) -> None:
        """Add rows. columns: the same at every call, each [n]"""
        import pandas as pd

        self._held.append(pd.DataFrame(columns))
        self._num_held += len(self._held[-1])
        if self._num_held >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pandas as pd
        import pyarrow
        import pyarrow.parquet

        if not self._held:
            return
        frame = self._held[0] if len(self._held) == 1 else pd.concat(self._held, ignore_index=True)
        self._held, self._num_held = [], 0
        try:
            if self.path.suffix == ".csv":
                frame.to_csv(self._partial, index=False, mode="a", header=not self._begun)
                self._begun = True
                return
            table = pyarrow.Table.from_pandas(frame, preserve_index=False)
            if self._parquet is None:
                self._parquet = pyarrow.parquet.ParquetWriter(self._partial, table.schema)
            self._parquet.write_table(table)
        except OSError as error:
            raise _not_written(self.path, error) from error


def frame_of(
    probabilities: np.ndarray,
    *,
    targets: np.ndarray,
    form: Form,
    fingerprint: str,
    names: Mapping[str, np.ndarray] = MappingProxyType({}),
    first_row: int = 0,
) -> pd.DataFrame:
    """Predictions as a table with the columns of a file.

    probabilities: [rows] or [rows, classes]; targets: [rows], below 0 where there are none
    fingerprint: as `data_fingerprint` has it; names: what else names the rows, each [rows], by column
    first_row: number of the first of them
    """
    import pandas as pd

    columns: dict[str, Any] = {ROW: first_row + np.arange(len(targets))}
    columns[FINGERPRINT] = pd.Categorical([fingerprint] * len(targets))
    columns |= {name: values for name, values in names.items() if name not in columns}
    if (targets >= 0).all():
        columns["label"] = targets
    return pd.DataFrame({**columns, **probability_columns(probabilities, form=form)})


def probability_columns(probabilities: np.ndarray, *, form: Form) -> dict[str, np.ndarray]:
    """Probabilities as the columns of a file, by name."""
    if form is Form.classes:
        return {f"prediction_{c}": probabilities[:, c] for c in range(probabilities.shape[1])}
    return {"prediction" if form is Form.binary else OF_LABEL: probabilities}


def make_writable(path: Path) -> None:
    """Make the folder of `path` and see that a file can be written there, before anything is worked out for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    except OSError as error:
        raise _not_written(path, error) from error
    if path.is_dir():
        raise UserError(f"--output {path}: this is a folder. Name a file in it.")


def _not_written(path: Path, error: OSError) -> UserError:
    reason = f"{path.parent} is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
    return UserError(f"--output {path}: cannot be written: {reason}.")
