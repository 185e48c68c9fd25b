"""Values that divide rows into slices, found while the rows pass by: a few distinct ones, or tenths of a number."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from odist.errors import UserError
from odist.measure.keyed_parts import hashed
from odist.measure.slices import LARGEST_NUMBER_OF_SLICES

SAMPLE = 1 << 17  # rows from which the borders of tenths are found; of fewer rows they are exact
FEW = 20  # numbers with more distinct values become tenths
MOST_VALUES = 1 << 20  # distinct words that are counted
OTHER, MISSING = "other", "missing"


class SliceValues:
    """The values of one slice. Call `see` for all rows, then `settle`, then `codes`.

    labels: the values, in order; the rarest beyond fifty are `other`
    The sample for tenths has the rows with the smallest hashes of their names, so that it does not depend on how rows are
    cut into pieces.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.labels: list[Any] = []
        self._counts: Counter[Any] = Counter()
        self._sample, self._hashes = np.empty(0), np.empty(0, dtype=np.uint64)
        self._borders: np.ndarray | None = None
        self._places: dict[Any, int] = {}
        self._is_real = False  # whether some are no whole numbers

    def see(self, values: np.ndarray, *, names: np.ndarray) -> None:
        """Take in the next rows. values: [n]; names: [n], what names a row"""
        if self.name == "position":
            return
        if values.dtype.kind in "iuf":
            self._keep(values, names)
        if values.dtype.kind == "f":
            self._is_real = True
            if len(self._counts) > FEW:
                return
        distinct, counts = np.unique(_plain(values), return_counts=True)
        self._counts.update(dict(zip(map(_known, distinct.tolist()), counts.tolist(), strict=True)))
        if len(self._counts) > MOST_VALUES:
            raise UserError(
                f"--slice {self.name}: more than {MOST_VALUES:,} values. Name a column with a few, such as a country."
            )

    def _keep(self, values: np.ndarray, names: np.ndarray) -> None:
        hashes = np.concatenate([self._hashes, hashed(names)])
        sample = np.concatenate([self._sample, values])
        if len(hashes) > SAMPLE:
            smallest = np.argpartition(hashes, SAMPLE)[:SAMPLE]
            hashes, sample = hashes[smallest], sample[smallest]
        self._hashes, self._sample = hashes, sample

    def settle(self) -> None:
        """Fix labels and borders."""
        if self.name == "position":
            self.labels = list(range(1, 11))
        elif self._is_real and len(self._counts.keys() - {MISSING}) > FEW:
            self.labels = list(range(1, 11))
            ordered = np.sort(self._sample[~np.isnan(self._sample)])
            self._borders = ordered[(np.arange(1, 10) * len(ordered) + 9) // 10]
        else:
            missing = [MISSING] * (MISSING in self._counts)
            values = (
                sorted(self._counts.keys() - {MISSING}, key=lambda value: (isinstance(value, str), value)) + missing
            )
            if len(values) > LARGEST_NUMBER_OF_SLICES:
                common = sorted(values, key=lambda value: -self._counts[value])[: LARGEST_NUMBER_OF_SLICES - 1]
                values = [value for value in values if value in common]
            self._places = {value: place for place, value in enumerate(values)}
            self.labels = values + ([OTHER] if len(values) < len(self._counts) else [])

    def codes(self, values: np.ndarray, *, rows: np.ndarray, total: int) -> np.ndarray:
        """The place of each row's label, int64 [n]. rows: their numbers; total: how many there are in all"""
        if self.name == "position":
            return np.asarray(np.clip(rows * 10 // total, 0, 9), dtype=np.int64)
        if self._borders is not None:
            return np.asarray(np.searchsorted(self._borders, values, side="right"), dtype=np.int64)
        distinct, inverse = np.unique(_plain(values), return_inverse=True)
        places = [self._places.get(_known(value), len(self._places)) for value in distinct.tolist()]
        return np.asarray(np.array(places, dtype=np.int64)[inverse])


def _known(value: Any) -> Any:
    """The value as a key: one for all that is missing, and whole numbers as such."""
    if isinstance(value, float):
        return MISSING if math.isnan(value) else int(value) if value.is_integer() else value
    return value


def _plain(values: np.ndarray) -> np.ndarray:
    """Words for objects, so that they can be sorted."""
    return values if values.dtype.kind in "biufUS" else values.astype(str)
