"""Exact duplicates over all pieces of a preparation, by 64-bit hashes on the disk.

The first of equal ones stays, in the order of sources. Memory is BUCKET hashes, however many there are. At n
hashes about n² / 2^65 are taken for equal and are not: 0.03 of one at a billion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from odist.files import save_array

BUCKET = 1 << 23


def hash_text(text: str) -> int:
    """Return 64 bits that stand for a paragraph or document."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def save_hashes(folder: Path, *, piece: int, hashes: np.ndarray) -> None:
    """Save the hashes of a piece, uint64 [n] in order of the text, sorted for `mark_duplicates`."""
    order = np.argsort(hashes, kind="stable")
    save_array(folder / f"{piece:06d}.hashes.npy", hashes[order])
    save_array(folder / f"{piece:06d}.order.npy", order.astype(np.uint32))


def load_keep(folder: Path, *, piece: int) -> np.ndarray:
    """Load which of a piece's hashes to keep, bool [n] in order of the text: False where the same came before."""
    return np.load(folder / f"{piece:06d}.keep.npy", allow_pickle=False)


def mark_duplicates(folder: Path, *, num_pieces: int, poll: Callable[[], None], bucket: int = BUCKET) -> None:
    """Write what `load_keep` reads, for pieces 0 .. num_pieces - 1 with their `save_hashes`.

    poll: called often; may raise to stop
    bucket: hashes held at once, about; never changes the result
    """
    sizes = []
    for piece in range(num_pieces):
        hashes = np.load(folder / f"{piece:06d}.hashes.npy", mmap_mode="r", allow_pickle=False)
        sizes.append(len(hashes))
        keep = np.lib.format.open_memmap(folder / f"{piece:06d}.keep.npy", mode="w+", dtype=bool, shape=hashes.shape)
        keep[:] = True
        keep.flush()
        poll()
    buckets = max(1, -(-sum(sizes) // bucket))
    done = np.zeros(num_pieces, dtype=np.int64)
    for number in range(1, buckets + 1):
        border = None if number == buckets else (number << 64) // buckets
        _mark_bucket(folder, done, sizes, border=border, poll=poll)


def _mark_bucket(
    folder: Path, done: np.ndarray, sizes: list[int], *, border: int | None, poll: Callable[[], None]
) -> None:
    # Hashes below `border` that no earlier bucket has seen; `done` moves on.
    slices, owners = [], []
    starts = done.copy()
    for piece, size in enumerate(sizes):
        if starts[piece] == size:
            continue
        hashes = np.load(folder / f"{piece:06d}.hashes.npy", mmap_mode="r", allow_pickle=False)
        stop = size if border is None else int(np.searchsorted(hashes, np.uint64(border)))
        slices.append(np.array(hashes[starts[piece] : stop]))
        owners.append(piece)
        done[piece] = stop
        poll()
    if not slices:
        return
    lengths = np.array([len(found) for found in slices])
    values = np.concatenate(slices)
    order = np.argsort(values, kind="stable")  # stable: of equal ones the first piece comes first
    ranked = values[order]
    repeated = np.zeros(len(values), dtype=bool)
    repeated[order[1:]] = ranked[1:] == ranked[:-1]
    ends = np.cumsum(lengths)
    for piece, start, stop in zip(owners, ends - lengths, ends, strict=True):
        local = np.flatnonzero(repeated[start:stop])
        if not len(local):
            continue
        places = np.load(folder / f"{piece:06d}.order.npy", mmap_mode="r", allow_pickle=False)
        keep = np.lib.format.open_memmap(folder / f"{piece:06d}.keep.npy", mode="r+")
        keep[places[starts[piece] + local]] = False
        keep.flush()
        poll()
