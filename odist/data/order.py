"""Which examples a step reads: a pure function of the step, so a loader has no state to lose.

Each epoch is one pseudo-random permutation of the rows, computed row by row (a Feistel network with
cycle walking, as in levanter's `_prp.py`), so nothing is stored and any step can be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from odist.rng import derive, mix

NUM_ROUNDS = 4


class Order(Protocol):
    """Which rows a step reads."""

    def ids(self, step: int) -> np.ndarray:
        """Row numbers of `step` (0-based), int64 [examples per step], or several numbers for each example,
        [examples per step, ...], where a task needs them."""
        ...


class EvaluationOrder(Order, Protocol):
    """Which rows each step of an evaluation reads; the steps end.

    A step's rows are divided among streams, which do not depend on each other: a model carries its state through each.
    """

    def __len__(self) -> int: ...

    @property
    def streams(self) -> Sequence[int]:
        """The number of batches of each stream."""
        ...

    def part(self, stream: int, step: int) -> np.ndarray:
        """The ids of a stream's batch number `step` (0-based)."""
        ...


def order_seed(seed: int, *, group: int, partition: str) -> int:
    """The seed of a group's order: one for all groups where they read identical rows, else one of its own.

    seed: of the run; partition: data.partition
    """
    return derive(seed, "order", group=0 if partition == "identical" else group)


def permute(index: np.ndarray, size: int, *, key: int) -> np.ndarray:
    """Map indices through a keyed permutation of range(size).

    index: int64, any shape, values in [0, size)
    size: number of elements, at least 1
    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking).
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [derive(key, "feistel", step=round_number) for round_number in range(NUM_ROUNDS)]

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right, key=round_key) & mask)
        return (left << np.uint64(half)) | right

    result = encrypt(np.asarray(index, dtype=np.uint64))
    outside = result >= np.uint64(size)
    while outside.any():
        result[outside] = encrypt(result[outside])
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


class ShuffledOrder:
    """Epochs over `num_rows` rows, each in a new order.

    num_rows: rows this group reads
    examples_per_step: rows of one step, over all workers of the group
    seed: of the order (run seed and group)
    partition: (part, num_parts, seed) or None; part p of a keyed split of `num_rows * num_parts` rows
    offset: first row, of a later part or of one of the streams that lie one after another
    """

    def __init__(
        self,
        num_rows: int,
        examples_per_step: int,
        *,
        seed: int,
        partition: tuple[int, int, int] | None = None,
        offset: int = 0,
    ) -> None:
        if num_rows < 1:
            raise ValueError(f"an order needs at least one row, got {num_rows}")
        self.num_rows = num_rows
        self.examples_per_step = examples_per_step
        self.seed = seed
        self.partition = partition
        self.offset = offset

    def ids(self, step: int) -> np.ndarray:
        position = np.arange(step * self.examples_per_step, (step + 1) * self.examples_per_step, dtype=np.int64)
        epoch, index = np.divmod(position, self.num_rows)
        rows = np.empty_like(index)
        for number in range(int(epoch[0]), int(epoch[-1]) + 1):
            inside = epoch == number
            rows[inside] = permute(index[inside], self.num_rows, key=derive(self.seed, "epoch", step=number))
        if self.partition is not None:
            part, num_parts, seed = self.partition
            # Row r of part p is element r * num_parts + p of one permutation of all rows, so parts are disjoint.
            rows = permute(rows * num_parts + part, self.num_rows * num_parts, key=derive(seed, "partition"))
        return rows + self.offset


class SequentialOrder:
    """Rows `first`, `first` + 1, ... in steps of at most `examples_per_step`; the last step may be shorter."""

    def __init__(self, num_rows: int, examples_per_step: int, *, first: int = 0) -> None:
        self.num_rows = num_rows
        self.examples_per_step = examples_per_step
        self.first = first

    def __len__(self) -> int:
        return -(-self.num_rows // self.examples_per_step)

    def ids(self, step: int) -> np.ndarray:
        start = step * self.examples_per_step
        stop = min(start + self.examples_per_step, self.num_rows)
        return np.arange(self.first + start, self.first + stop, dtype=np.int64)

    @property
    def streams(self) -> Sequence[int]:
        """Every step is a stream of its own."""
        return (1,) * len(self)

    def part(self, stream: int, step: int) -> np.ndarray:
        return self.ids(stream + step)


@dataclass(frozen=True)
class Shares:
    """Which training rows each group reads.

    partition, parts, seed: data.partition, data.parts and data.seed
    rows: that are read of the training part, from number `first` on
    streams: whether disjoint parts lie one after another instead of sharing the rows
    """

    partition: str
    parts: int | None
    seed: int
    rows: int
    streams: bool
    first: int = 0

    def order(self, *, group: int, num_groups: int, examples_per_step: int, seed: int) -> ShuffledOrder:
        """The order in which a group reads its rows. seed: see `order_seed`."""
        parts = num_parts(self.partition, self.parts, num_groups=num_groups)
        if parts > 1 and not self.streams:
            own = (group, parts, self.seed)
            return ShuffledOrder(self.rows // parts, examples_per_step, seed=seed, partition=own, offset=self.first)
        offset = self.first + (group * self.rows if parts > 1 else 0)
        return ShuffledOrder(self.rows, examples_per_step, seed=seed, offset=offset)

    def distinct(self, *, num_groups: int, examples: int) -> int:
        """Different rows that `num_groups` groups read in `examples` examples each."""
        parts = num_parts(self.partition, self.parts, num_groups=num_groups)
        each = min(examples, self.rows if self.streams else self.rows // parts)
        if parts > 1:
            return num_groups * each
        if self.partition == "identical":
            return each
        # Over less than one pass, groups that share the rows read different ones, each in its own order.
        unread = (1 - each / self.rows) ** num_groups
        return self.rows if each == self.rows else round(self.rows * (1 - unread))


def num_parts(partition: str, parts: int | None, *, num_groups: int) -> int:
    """The number of parts of the training rows: data.parts, by default one per group; 1 where groups share the rows."""
    return (parts or num_groups) if partition == "disjoint" else 1
