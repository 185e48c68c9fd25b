"""Predictions that were written down: soft targets of a model that is not there, found by the rows that they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odist.errors import UserError
from odist.measure.churn import Form
from odist.measure.prediction_files import ROW, listed, read_predictions

SMALLEST = 1e-7  # probability: a file may hold 0, whose logit is not finite


class Recorded:
    """The predictions of one model, by row.

    keys: [rows] of any kind that can be sorted, each once; probabilities: [rows] of the positive class, or [rows, classes]
    name: of the file, for messages
    """

    def __init__(self, keys: np.ndarray, probabilities: np.ndarray, *, name: str) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys, self.name = keys[order], name
        twice = np.flatnonzero(self.keys[1:] == self.keys[:-1])
        if len(twice):
            raise UserError(f"{name}: row {self.keys[twice[0]]} has two predictions. Expected one for each row.")
        shares = np.clip(probabilities[order].astype(np.float64), SMALLEST, 1 - SMALLEST)
        logits = np.log(shares) if shares.ndim > 1 else np.log(shares) - np.log1p(-shares)
        self._logits = torch.from_numpy(logits.astype(np.float32))

    @classmethod
    def read(
        cls, path: str | Path, *, key: str = ROW, column: tuple[str, ...] = (), rows_are: str | None = None
    ) -> Recorded:
        """Read a CSV or Parquet file of predictions; columns as `odist churn` reads them.

        key: column that names the row; rows_are: `data_fingerprint` that its rows must have, where the file has one
        Raises UserError where the file has no such columns or is of other rows.
        """
        found = read_predictions(path, column=column)
        if found.form is Form.label:
            raise UserError(f"{path}: has the probability of the label alone, and a teacher needs that of every class.")
        if key not in found.columns:
            raise UserError(f"{path}: no column {key!r} that names the row. It has: {listed(found.columns)}.")
        if rows_are is not None and found.fingerprint not in (None, rows_are):
            raise UserError(
                f"{path}: predictions of other rows ({found.fingerprint}) than are trained on ({rows_are}). Make them with "
                "odist eval RUN --data STORE --split train --output FILE.parquet."
            )
        return cls(found.columns[key], found.probabilities, name=str(path))

    def logits(self, keys: np.ndarray, *, device: torch.device | str = "cpu") -> Tensor:
        """Logits of these rows, [rows] or [rows, classes]; UserError if one is missing."""
        wanted = np.asarray(keys)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        missing = np.flatnonzero(self.keys[places] != wanted)
        if len(missing):
            raise UserError(
                f"{self.name}: no prediction of row {wanted[missing[0]]}, nor of {len(missing) - 1} others of {len(wanted)} "
                "that are trained on. Expected one for every row."
            )
        return self._logits[torch.from_numpy(places)].to(device)
