"""Where what lies in a packed row of a click store: labels, numbers, categories, and what else is known of the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

KEY_COLUMNS = {None: 0, "integer": 2, "text": 3}


@dataclass(frozen=True)
class RowLayout:
    """int32 columns of a row, in this order; without a layout in its record a store has Criteo's, which is the default.

    labels: 0, 1, or -1 where unknown; numeric: bit patterns of float32, NaN where missing; categorical: ids
    weight: one float32; time: one float64; key: one int64, or of a text its place in the file of keys and its length
    """

    labels: int = 1
    numeric: int = 13
    categorical: int = 26
    weight: bool = False
    time: bool = False
    key: str | None = None  # integer | text

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> RowLayout:
        """The layout that a store's record names."""
        return cls(**meta.get("layout", {}))

    @property
    def columns(self) -> int:
        """int32 values of a row."""
        return self.key_columns.stop

    @property
    def numeric_columns(self) -> slice:
        return slice(self.labels, self.labels + self.numeric)

    @property
    def categorical_columns(self) -> slice:
        return slice(self.numeric_columns.stop, self.numeric_columns.stop + self.categorical)

    @property
    def weight_columns(self) -> slice:
        return slice(self.categorical_columns.stop, self.categorical_columns.stop + self.weight)

    @property
    def time_columns(self) -> slice:
        return slice(self.weight_columns.stop, self.weight_columns.stop + 2 * self.time)

    @property
    def key_columns(self) -> slice:
        return slice(self.time_columns.stop, self.time_columns.stop + KEY_COLUMNS[self.key])


def viewed(rows: np.ndarray, columns: slice, dtype: str) -> np.ndarray:
    """Columns of packed rows int32 [n, columns] as values of another type: a copy, [n, values]."""
    return np.ascontiguousarray(rows[:, columns]).view(dtype)


def keys_of(rows: np.ndarray, layout: RowLayout, texts: np.ndarray | None) -> np.ndarray:
    """Keys [n] of packed rows: int64, or text as objects. texts: uint8, the content of the file of keys"""
    packed = rows[:, layout.key_columns]
    if texts is None:
        return viewed(packed, slice(0, 2), "<i8")[:, 0]
    starts, lengths = viewed(packed, slice(0, 2), "<i8")[:, 0], packed[:, 2]
    found = [texts[start : start + length].tobytes().decode() for start, length in zip(starts, lengths, strict=True)]
    return np.array(found, dtype=object)
