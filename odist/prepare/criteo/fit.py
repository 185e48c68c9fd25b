"""What the Criteo preparation fits on the training part, and the digest of the finished rows.

Sweeps over array files in chunks of fixed size, counted from the start of a split, so that numbers and
digests depend on the rows alone and not on how the input was cut into blocks. Reads the files instead of
mapping them: memory stays at a few chunks.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from odist.data.arrays import load_array
from odist.data.rows import DTYPE, HEADER_BYTES
from odist.data.store import damaged
from odist.errors import UserError
from odist.files import save_array

T = TypeVar("T")
U = TypeVar("U")
CHUNK_ROWS = 65_536
NUM_COLUMNS = 40
ROW_BYTES = NUM_COLUMNS * DTYPE.itemsize
RARE_FILE = "rare.npy"


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of one array file."""

    file: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def in_order(items: Iterator[T], work: Callable[[T], U], *, threads: int) -> Generator[tuple[T, U], None, None]:
    """Apply `work` in threads; yield (item, result) in the order of the items, a few at a time."""
    waiting: deque[tuple[T, Future[U]]] = deque()
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="prepare") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _sweep(
    folder: Path, split: RowRange, work: Callable[[int, np.ndarray], U], *, threads: int, poll: Callable[[], None]
) -> Iterator[U]:
    # work(place in the file, rows int32 [n, 40]) for each chunk of the split, in order.
    descriptor = os.open(folder / split.file, os.O_RDONLY)

    def read(start: int) -> U:
        rows = np.empty((min(CHUNK_ROWS, split.stop - start), NUM_COLUMNS), dtype=DTYPE)
        place = HEADER_BYTES + start * ROW_BYTES
        view, done = rows.data.cast("B"), 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], place + done)
            if count == 0:
                raise UserError(
                    f"{folder / split.file}: shorter than its {split.stop:,} rows. Remove {folder} and begin again."
                )
            done += count
        return work(place, rows)

    try:
        for _, result in in_order(iter(range(split.start, split.stop, CHUNK_ROWS)), read, threads=threads):
            poll()
            yield result
    finally:
        os.close(descriptor)


def fit_numeric(
    folder: Path, train: RowRange, *, threads: int, poll: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Fit mean and standard deviation of the present log-transformed values of each integer column.

    Population deviation; a column that is constant or always missing gets 1, and mean 0 if always missing.
    Chunks are joined by the formula of Chan, Golub and LeVeque 1983.
    """
    from odist.prepare.criteo import kernels

    def work(_: int, rows: np.ndarray) -> np.ndarray:
        return np.asarray(kernels.moments(rows.view(np.float32)))

    count, mean, squares = np.zeros((3, kernels.NUM_NUMERIC))
    for n, m, s in _sweep(folder, train, work, threads=threads, poll=poll):
        total = np.maximum(count + n, 1)
        delta = m - mean
        mean = mean + delta * n / total
        squares = squares + s + delta**2 * count * n / total
        count = count + n
    deviation = np.sqrt(squares / np.maximum(count, 1))
    return mean.tolist(), np.where(deviation > 0, deviation, 1.0).tolist()


def fit_rare(folder: Path, train: RowRange, *, buckets: int, min_count: int, poll: Callable[[], None]) -> np.ndarray:
    """Find the buckets that the training part holds fewer than `min_count` (at most 255) times, bool [buckets]."""
    from odist.prepare.criteo import kernels

    counters = np.zeros(buckets, dtype=np.uint8)
    # One thread: all chunks add to the same counters.
    for _ in _sweep(folder, train, lambda _, rows: kernels.count_ids(rows, counters), threads=1, poll=poll):
        pass
    return counters < min_count


def save_rare(folder: Path, rare: np.ndarray) -> dict[str, str]:
    """Write the mask, bits packed, beside the rows; return the entry of `fitted` that names it."""
    packed = np.packbits(rare)
    save_array(folder / RARE_FILE, packed)
    return {"file": RARE_FILE, "sha256": hashlib.sha256(packed.tobytes()).hexdigest()}


def load_rare(folder: Path, entry: dict[str, str], *, buckets: int) -> np.ndarray:
    """Read a mask again, bool [buckets]; UserError when it is not the one that `entry` names."""
    path = folder / entry["file"]
    packed = load_array(path, dtype="uint8", shape=(-(-buckets // 8),))
    if hashlib.sha256(packed.tobytes()).hexdigest() != entry["sha256"]:
        raise damaged(path, "its content is not what store.json says")
    return np.unpackbits(packed, count=buckets).astype(np.bool_)


def seal_rows(folder: Path, split: RowRange, *, rare: np.ndarray | None, threads: int, poll: Callable[[], None]) -> str:
    """Replace rare ids in place, if any, and return the digest of the rows; doing it again gives the same."""
    from odist.prepare.criteo import kernels

    rare_ids = None if rare is None else kernels.special_ids(kernels.RARE_VALUE, len(rare))
    descriptor = os.open(folder / split.file, os.O_RDWR)

    def work(place: int, rows: np.ndarray) -> bytes:
        if rare is not None:
            kernels.replace_rare(rows, rare, rare_ids)
            view = rows.data.cast("B")
            done = 0
            while done < len(view):
                done += os.pwrite(descriptor, view[done:], place + done)
        return hashlib.sha256(rows.data).digest()

    whole = hashlib.sha256()
    try:
        for digest in _sweep(folder, split, work, threads=threads, poll=poll):
            whole.update(digest)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return whole.hexdigest()
