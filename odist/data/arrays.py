"""Array files of a prepared store, mapped and checked; errors name the file and the cure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from odist.data.store import damaged

MAPPED_BYTES = 1 << 16  # smaller files are read, for an empty array cannot be mapped


def load_array(path: Path, *, dtype: str, shape: Sequence[int | None]) -> np.ndarray:
    """The array in a .npy file, read-only.

    dtype, shape: what the file must hold; None for a size that may be any
    Raises UserError for a file that is missing, no array file, another array, or longer or shorter than its array.
    """
    try:
        size = path.stat().st_size
        mapped = size > MAPPED_BYTES
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            expected = file.tell() + array.nbytes
    except FileNotFoundError:
        raise damaged(path, "the file is missing") from None
    except (ValueError, EOFError) as error:
        raise damaged(path, f"no array file ({error})") from None
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits or not array.flags.c_contiguous:
        wanted = f"{dtype} [{', '.join('any' if size is None else str(size) for size in shape)}]"
        raise damaged(path, f"expected {wanted}, found {array.dtype} {list(array.shape)}")
    if size != expected:
        raise damaged(path, f"{size:,} bytes instead of {expected:,}")
    array.flags.writeable = False
    return np.asarray(array)


def check_size(path: Path, num_bytes: int) -> None:
    """Refuse a file without a header that is missing or does not have `num_bytes` bytes; raises UserError."""
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        raise damaged(path, "the file is missing") from None
    if size != num_bytes:
        raise damaged(path, f"{size:,} bytes instead of {num_bytes:,}")
