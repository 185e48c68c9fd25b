"""Compiled inner loops of the Criteo preparation: text -> packed rows, moments, counts of ids.

Importing this module imports numba, so it is imported when a preparation starts. The loops hold no state and run
without the GIL.

A packed row is int32 [40]: label (0, 1; -1 without one), 13 bit patterns of float32 (sign(x) log1p(|x|),
NaN where missing), 26 bucket ids.

odist-hash-1, fixed for ever: a categorical value is the integer of its hexadecimal digits (below 2**32),
2**32 where missing, 2**32 + 1 for "rare". Column c (0 to 25) and value v give the key c * 2**33 + v, the
key gives splitmix64(key), and its upper 32 bits h give the bucket h * buckets // 2**32.
Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

HASH = "odist-hash-1"
NUM_NUMERIC, NUM_CATEGORICAL = 13, 26
NUM_FEATURES = NUM_NUMERIC + NUM_CATEGORICAL
MISSING_VALUE, RARE_VALUE = 1 << 32, (1 << 32) + 1

# Why a row is refused.
COLUMNS, LABEL, INTEGER, CATEGORICAL, EMPTY = 1, 2, 3, 4, 5
NUM_REASONS = 6

TAB, NEWLINE, RETURN, MINUS, POINT, ZERO, NINE = 9, 10, 13, 45, 46, 48, 57
MAX_DIGITS = 18  # every such number fits into 63 bits
TABLE_SIZE = 4096  # most numbers of Criteo are below; their logarithm is looked up

_HEX = np.full(256, 255, dtype=np.uint8)
_HEX[48:58] = np.arange(10)
_HEX[65:71] = np.arange(10, 16)
_HEX[97:103] = np.arange(10, 16)

_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32, _S33 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32), np.uint64(33)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of numbers and arrays, without the GIL."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that could hold the cache: compile in every process
        return njit(nogil=True)(function)


@compiled
def splitmix64(key: np.uint64) -> np.uint64:
    """Return the first output of splitmix64 seeded with `key`."""
    z = key + _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@compiled
def bucket(column: int, value: int, buckets: int) -> np.int32:
    """Return the bucket of categorical `value` (MISSING_VALUE and RARE_VALUE included) in `column` (0 to 25)."""
    z = splitmix64((np.uint64(column) << _S33) | np.uint64(value))
    return np.int32(((z >> _S32) * np.uint64(buckets)) >> _S32)


@compiled
def log_transform(value: int) -> np.float32:
    """Return sign(x) * log1p(|x|); Criteo's integers go down to -3."""
    if value < 0:
        return np.float32(-math.log1p(float(-value)))
    return np.float32(math.log1p(float(value)))


@compiled
def log_table() -> np.ndarray:
    """Return log_transform of 0, 1, ..., TABLE_SIZE - 1."""
    table = np.empty(TABLE_SIZE, dtype=np.float32)
    for value in range(TABLE_SIZE):
        table[value] = log_transform(value)
    return table


@compiled
def special_ids(value: int, buckets: int) -> np.ndarray:
    """Return the bucket of MISSING_VALUE or RARE_VALUE in each categorical column, int32 [26]."""
    ids = np.empty(NUM_CATEGORICAL, dtype=np.int32)
    for column in range(NUM_CATEGORICAL):
        ids[column] = bucket(column, value, buckets)
    return ids


@compiled
def drawn(first: int, count: int, seed: int, threshold: int) -> np.ndarray:
    """Draw which of rows first, ..., first + count - 1 a random split takes, bool [count].

    Row r is taken when the upper 53 bits of splitmix64(splitmix64(seed) + r) are below `threshold`.
    """
    key = splitmix64(np.uint64(seed))
    result = np.empty(count, dtype=np.bool_)
    for index in range(count):
        result[index] = (splitmix64(key + np.uint64(first + index)) >> np.uint64(11)) < np.uint64(threshold)
    return result


@compiled
def extreme_draws(count: int, seed: int) -> tuple[int, int]:
    """Return the least and the largest number that `drawn` compares, of rows 0 to count - 1; count at least 1."""
    key = splitmix64(np.uint64(seed))
    least = most = splitmix64(key) >> np.uint64(11)
    for index in range(1, count):
        value = splitmix64(key + np.uint64(index)) >> np.uint64(11)
        least, most = min(least, value), max(most, value)
    return least, most


@compiled
def _skip_zero_fraction(text, position):  # type: ignore[no-untyped-def]
    # "1.0", as pandas writes integers of a column with gaps; any other fraction stops at the point.
    if text[position] == POINT and text[position + 1] == ZERO:
        position += 2
        while text[position] == ZERO:
            position += 1
    return position


@compiled
def _parse_label(text, position, separator):  # type: ignore[no-untyped-def]
    label = np.int64(text[position]) - ZERO
    if label != 0 and label != 1:
        return -1, position
    position = _skip_zero_fraction(text, position + 1)
    if text[position] != separator:
        return -1, position
    return label, position + 1


@compiled
def _parse_row(text, position, separator, labelled, buckets, missing_ids, table, row, numeric, missing):  # type: ignore[no-untyped-def]
    # One row -> (reason or 0, column from 0, position after it or where it went wrong).
    # `text` ends with a newline, which is not a digit, so no loop can run past the end.
    row[0] = -1
    if labelled:
        label, position = _parse_label(text, position, separator)
        if label < 0:
            return LABEL, 0, position
        row[0] = label
    for column in range(NUM_NUMERIC):
        if text[position] == separator:
            numeric[1 + column] = np.float32(np.nan)
            missing[column] = 1
            position += 1
            continue
        negative = text[position] == MINUS
        if negative:
            position += 1
        first, value = position, np.int64(0)
        while ZERO <= text[position] <= NINE:
            value = value * 10 + (np.int64(text[position]) - ZERO)
            position += 1
        digits = position - first
        position = _skip_zero_fraction(text, position)
        if digits == 0 or digits > MAX_DIGITS or text[position] != separator:
            return INTEGER, column, position
        position += 1
        if negative:
            value = -value
        numeric[1 + column] = table[value] if 0 <= value < TABLE_SIZE else log_transform(value)
        missing[column] = 0
    for column in range(NUM_CATEGORICAL):
        first, code = position, np.uint64(0)
        digit = _HEX[text[position]]
        while digit < 16:
            code = (code << np.uint64(4)) | np.uint64(digit)
            position += 1
            digit = _HEX[text[position]]
        end = text[position]
        if column < NUM_CATEGORICAL - 1:
            if end != separator:
                return CATEGORICAL, NUM_NUMERIC + column, position
        elif end == RETURN and text[position + 1] == NEWLINE:
            position += 1
        elif end != NEWLINE:
            return CATEGORICAL, NUM_NUMERIC + column, position
        digits = position - first
        if end == RETURN:
            digits -= 1
        if digits > 8:
            return CATEGORICAL, NUM_NUMERIC + column, position
        position += 1
        if digits == 0:
            row[1 + NUM_NUMERIC + column] = missing_ids[column]
            missing[NUM_NUMERIC + column] = 1
        else:
            row[1 + NUM_NUMERIC + column] = bucket(column, code, buckets)
            missing[NUM_NUMERIC + column] = 0
    return 0, 0, position


@compiled
def _diagnose(text, start, separator, labelled, reason, detail):  # type: ignore[no-untyped-def]
    # A wrong number of columns explains everything after it, so it is the reason given.
    position, found = start, 1
    while text[position] != NEWLINE:
        found += text[position] == separator
        position += 1
    length = position - start
    if length == 0 or (length == 1 and text[start] == RETURN):
        return EMPTY, 0, position + 1
    if found != NUM_FEATURES + (1 if labelled else 0):
        return COLUMNS, found, position + 1
    return reason, detail, position + 1


@compiled
def parse_rows(text, separator, labelled, buckets, missing_ids, table, out, out_float, missing, bad, counts):  # type: ignore[no-untyped-def]
    """Parse whole lines.

    text: uint8 [n], ends with a newline
    separator: byte between columns; labelled: whether column 0 is the label
    buckets, missing_ids (int32 [26]), table (float32 [TABLE_SIZE]): see above
    out: int32 [capacity, 40], filled with good rows; out_float: the same memory as float32
    missing: int64 [39], counts of missing values in good rows, added to
    bad: int64 [k, 3], filled with (line from 1, reason, column or columns found) of the first k bad rows
    counts: int64 [NUM_REASONS], bad rows by reason, added to
    returns: (good rows, lines, clicks)
    """
    position, rows, lines, clicks, located = 0, 0, 0, 0, 0
    flags = np.zeros(NUM_FEATURES, dtype=np.int64)
    while position < len(text):
        lines += 1
        reason, detail, after = _parse_row(
            text, position, separator, labelled, buckets, missing_ids, table, out[rows], out_float[rows], flags
        )
        if reason == 0:
            clicks += out[rows, 0] == 1
            for column in range(NUM_FEATURES):
                missing[column] += flags[column]
            rows += 1
        else:
            reason, detail, after = _diagnose(text, position, separator, labelled, reason, detail)
            counts[reason] += 1
            if located < len(bad):
                bad[located, 0], bad[located, 1], bad[located, 2] = lines, reason, detail
                located += 1
        position = after
    return rows, lines, clicks


@compiled
def moments(rows_float):  # type: ignore[no-untyped-def]
    """Return count, mean and sum of squared deviations of the present numeric values.

    rows_float: float32 [n, 40], packed rows seen as float32
    returns: float64 [3, 13]
    """
    result = np.zeros((3, NUM_NUMERIC), dtype=np.float64)
    for row in range(len(rows_float)):
        for column in range(NUM_NUMERIC):
            value = rows_float[row, 1 + column]
            if not np.isnan(value):
                result[0, column] += 1
                result[1, column] += value
    for column in range(NUM_NUMERIC):
        if result[0, column] > 0:
            result[1, column] /= result[0, column]
    for row in range(len(rows_float)):
        for column in range(NUM_NUMERIC):
            value = rows_float[row, 1 + column]
            if not np.isnan(value):
                result[2, column] += (value - result[1, column]) ** 2
    return result


@compiled
def count_ids(rows, counters):  # type: ignore[no-untyped-def]
    """Add the bucket ids of packed rows to `counters`, uint8 [buckets], which stop at 255."""
    for row in range(len(rows)):
        for column in range(1 + NUM_NUMERIC, 1 + NUM_FEATURES):
            index = rows[row, column]
            if counters[index] < 255:
                counters[index] += 1


@compiled
def replace_rare(rows, rare, rare_ids):  # type: ignore[no-untyped-def]
    """Replace, in place, each id with rare[id] by its column's own rare id; doing it twice changes nothing more."""
    for row in range(len(rows)):
        for column in range(NUM_CATEGORICAL):
            if rare[rows[row, 1 + NUM_NUMERIC + column]]:
                rows[row, 1 + NUM_NUMERIC + column] = rare_ids[column]
