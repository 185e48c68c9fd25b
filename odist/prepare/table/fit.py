"""What is done once all rows of a table are read: order by time, numbers fitted on the training part, the final rows.

Goes over array files in chunks of fixed size, so that numbers depend on the rows alone; memory stays at a few chunks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odist.data.layout import RowLayout, viewed
from odist.data.rows import DTYPE, HEADER_BYTES, RowWriter
from odist.errors import UserError
from odist.prepare.table.schema import LARGEST_ID, TableSchema

CHUNK_ROWS = 65_536
SORTED_BYTES = 1 << 28  # of rows that are sorted at once
SAMPLED = 1 << 16  # times that say where to divide the rows for sorting
Poll = Callable[[], None]


def chunks(path: Path, *, rows: int, columns: int, poll: Poll) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number of the first row, rows int32 [n, columns]) over an array file of `rows` rows."""
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        for first in range(0, rows, CHUNK_ROWS):
            poll()
            count = min(CHUNK_ROWS, rows - first)
            yield first, np.fromfile(file, dtype=DTYPE, count=count * columns).reshape(count, columns)


def order_by_time(source: Path, target: Path, *, layout: RowLayout, rows: int, poll: Poll) -> None:
    """Write the rows of an array file in the order of their times, those of equal times in their own order.

    The rows are divided by time into pieces that are sorted one by one.
    """
    width = layout.columns * DTYPE.itemsize
    sampled = [
        viewed(part[:: max(1, rows // SAMPLED)], layout.time_columns, "<f8")[:, 0]
        for _, part in chunks(source, rows=rows, columns=layout.columns, poll=poll)
    ]
    pieces = -(-rows * width // SORTED_BYTES)
    times = np.sort(np.concatenate(sampled))
    edges = np.unique(times[np.arange(1, pieces) * len(times) // pieces])

    def pieces_of(part: np.ndarray) -> np.ndarray:
        return np.searchsorted(edges, viewed(part, layout.time_columns, "<f8")[:, 0], side="right")

    sizes = np.zeros(len(edges) + 1, dtype=np.int64)
    for _, part in chunks(source, rows=rows, columns=layout.columns, poll=poll):
        sizes += np.bincount(pieces_of(part), minlength=len(sizes))
    starts = np.cumsum(sizes) - sizes
    with open(target, "w+b") as file:
        file.truncate(HEADER_BYTES + rows * width)
        ends = starts.copy()
        for _, part in chunks(source, rows=rows, columns=layout.columns, poll=poll):
            place = pieces_of(part)
            for piece in np.unique(place):
                own = part[place == piece]
                file.seek(HEADER_BYTES + int(ends[piece]) * width)
                file.write(own.data)
                ends[piece] += len(own)
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            poll()
            file.seek(HEADER_BYTES + start * width)
            own = np.fromfile(file, dtype=DTYPE, count=size * layout.columns).reshape(size, layout.columns)
            order = np.argsort(viewed(own, layout.time_columns, "<f8")[:, 0], kind="stable")
            file.seek(HEADER_BYTES + start * width)
            file.write(own[order].data)
        file.flush()
        os.fsync(file.fileno())


@dataclass
class Division:
    """Which rows are training rows, by their number.

    border: with `split` time the first validation row; random: what a row's draw is compared with, by `seed`
    """

    split: str | None
    border: int
    seed: int = 0

    def is_training(self, first: int, count: int) -> np.ndarray:
        """Which of rows first, ..., first + count - 1 are, bool [count]."""
        if self.split == "random":
            from odist.prepare.criteo.kernels import drawn

            return ~np.asarray(drawn(first, count, self.seed, self.border))
        return np.arange(first, first + count) < self.border


def divide(rows: int, *, split: str | None, share: float | None, seed: int | None) -> Division:
    """Divide rows into a training part and a validation part of the given share, None: all are validation rows.

    At least one row is in each part, if a share above 0 is asked for; UserError for one row alone.
    """
    if share is None:
        return Division("time", 0)
    if rows == 1 and share > 0:
        raise UserError(
            "one row cannot be divided into a training and a validation part. Give more rows, or "
            "--validation-fraction 0, or --like STORE for validation alone."
        )
    if split != "random":
        border = rows - round(rows * share)
        return Division("time", min(max(border, 1), rows - 1) if share > 0 else border)
    from odist.prepare.criteo.kernels import extreme_draws

    assert seed is not None
    border = int(share * 2**53)
    if share > 0:
        least, most = (int(draw) for draw in extreme_draws(rows, seed))
        border = min(max(border, least + 1), most)
    return Division("random", border, seed)


def fit(
    path: Path,
    *,
    schema: TableSchema,
    layout: RowLayout,
    rows: int,
    division: Division,
    num_values: dict[str, int],
    poll: Poll,
) -> tuple[list[float], list[float], dict[str, np.ndarray]]:
    """Mean and deviation of each number, and how often the training part has each value of vocabulary columns.

    num_values: numbered values of those columns, which are numbered from 1
    Population deviation; a column that is constant or always missing gets 1, and mean 0 if always missing; one that is
    taken as it is gets 0 and 1. Chunks are joined by the formula of Chan, Golub and LeVeque 1983.
    """
    count, mean, squares = np.zeros((3, layout.numeric))
    places = {name: place for place, name in enumerate(schema.categorical)}
    counts = {name: np.zeros(number + 1, dtype=np.int64) for name, number in num_values.items()}
    for first, part in chunks(path, rows=rows, columns=layout.columns, poll=poll):
        train = part[division.is_training(first, len(part))]
        values = viewed(train, layout.numeric_columns, "<f4").astype(np.float64)
        there = ~np.isnan(values)
        n = there.sum(axis=0)
        m = np.where(there, values, 0.0).sum(axis=0) / np.maximum(n, 1)
        s = (np.where(there, values - m, 0.0) ** 2).sum(axis=0)
        total, delta = np.maximum(count + n, 1), m - mean
        squares += s + delta**2 * count * n / total
        mean += delta * n / total
        count += n
        ids = train[:, layout.categorical_columns]
        for name, own in counts.items():
            own += np.bincount(ids[:, places[name]], minlength=len(own))
    deviation = np.sqrt(squares / np.maximum(count, 1))
    plain = np.array([column.transform == "none" for column in schema.numeric.values()], dtype=np.bool_)
    deviation = np.where(plain | ~(deviation > 0), 1.0, deviation)
    return np.where(plain, 0.0, mean).tolist(), deviation.tolist(), counts


def place_ids(schema: TableSchema, vocabularies: dict[str, list[str]]) -> tuple[list[dict[str, Any]], int]:
    """Give every categorical column its part of the embedding table: (an entry for each, rows of the table).

    Hashed columns without buckets of their own share the first ids; a vocabulary has an id for what is missing, one for
    what is rare or unknown, and then its values.
    """
    shared = any(column.encoding == "hash" and not column.buckets for column in schema.categorical.values())
    total = schema.buckets if shared else 0
    entries: list[dict[str, Any]] = []
    for name, column in schema.categorical.items():
        entry: dict[str, Any] = {"name": name, "encoding": column.encoding, "first": total}
        if column.encoding == "vocabulary":
            entry |= {"ids": len(vocabularies[name]) + 2, "values": vocabularies[name]}
        elif column.buckets:
            entry |= {"ids": column.buckets}
        else:
            entry |= {"first": 0, "ids": schema.buckets}
        entries.append(entry)
        total = max(total, entry["first"] + entry["ids"])
    if total > LARGEST_ID:
        raise UserError(f"the embedding table would have {total:,} rows, at most {LARGEST_ID:,}. Lower the buckets.")
    return entries, max(total, 1)


def write_split(
    folder: Path,
    source: Path,
    *,
    layout: RowLayout,
    rows: int,
    division: Division,
    final_ids: list[Callable[[np.ndarray], np.ndarray]],
    poll: Poll,
) -> tuple[dict[str, int], dict[str, str]]:
    """Write train.npy and validation.npy; their numbers of rows and digests by split.

    final_ids: of each categorical column, from what was written while reading
    """
    files = ("train", "validation")
    digests = {split: hashlib.sha256() for split in files}
    writers = {split: RowWriter(folder / f"{split}.npy", columns=layout.columns) for split in files}
    with writers["train"], writers["validation"]:
        for first, part in chunks(source, rows=rows, columns=layout.columns, poll=poll):
            ids = part[:, layout.categorical_columns]
            for place, change in enumerate(final_ids):
                ids[:, place] = change(ids[:, place])
            training = division.is_training(first, len(part))
            for split, own in (("train", part[training]), ("validation", part[~training])):
                digests[split].update(own.data)
                writers[split].append(own)
        for writer in writers.values():
            writer.finish()
    return {split: writer.rows for split, writer in writers.items()}, {
        s: digest.hexdigest() for s, digest in digests.items()
    }
