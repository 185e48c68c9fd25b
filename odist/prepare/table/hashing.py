"""Compiled hash of text values into buckets. Importing this module imports numba.

odist-hash-2, fixed for ever: a value is the 64-bit FNV-1a of its UTF-8 bytes, of the single byte 0xFF where missing. That,
xor the FNV-1a of the column's name put through splitmix64, gives a key; the upper 32 bits h of splitmix64(key) give the
bucket h * buckets // 2**32.
Source: Fowler, Noll and Vo, "FNV hash", draft-eastlake-fnv; splitmix64 as in odist.prepare.criteo.kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from odist.prepare.criteo.kernels import compiled, splitmix64

if TYPE_CHECKING:
    import pyarrow as pa

HASH = "odist-hash-2"
MISSING = b"\xff"  # in no UTF-8 text

_OFFSET, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_S32 = np.uint64(32)


@compiled
def fnv1a(data: np.ndarray, start: int, stop: int) -> np.uint64:
    """Return the 64-bit FNV-1a of data[start:stop], uint8."""
    value = _OFFSET
    for place in range(start, stop):
        value = (value ^ np.uint64(data[place])) * _PRIME
    return value


@compiled
def _buckets(data, offsets, missing, missing_hash, column_key, buckets):  # type: ignore[no-untyped-def]
    ids = np.empty(len(missing), dtype=np.int32)
    for row in range(len(missing)):
        value = missing_hash if missing[row] else fnv1a(data, offsets[row], offsets[row + 1])
        key = splitmix64(value ^ column_key)
        ids[row] = np.int32(((key >> _S32) * np.uint64(buckets)) >> _S32)
    return ids


def hash_column(values: pa.Array, *, name: str, buckets: int) -> np.ndarray:
    """Return the bucket of each value of a binary array, null where missing, int32 [n].

    name: of the column; equal values of two columns are in different buckets
    """
    _, offsets, data = values.buffers()
    first, count = values.offset, len(values)
    content = np.empty(0, dtype=np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
    ends = np.frombuffer(offsets, dtype=np.int32)[first : first + count + 1] if count else np.zeros(1, dtype=np.int32)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    key = np.uint64(splitmix64(np.uint64(_hash(name.encode()))))
    return np.asarray(_buckets(content, ends, missing, np.uint64(_hash(MISSING)), key, buckets))


def _hash(text: bytes) -> np.uint64:
    return np.uint64(fnv1a(np.frombuffer(text, dtype=np.uint8), 0, len(text)))
