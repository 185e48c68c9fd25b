"""Lanes through documents: which tokens a step of a language model reads, as a pure function of the step.

The documents are laid one after the other; every lane starts at its own place of that line and reads on from
step to step, so that a model may carry its state. An id is the address of one token in a store or a generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from odist.rng import derive, mix

STREAM_LANES = 32  # lanes of an evaluation that one process reads
KEPT_LINES = 2  # passes whose order of documents is kept


@dataclass(frozen=True)
class Documents:
    """Documents by where they lie: addresses int64 [m] of their first tokens, lengths int64 [m] in tokens."""

    addresses: np.ndarray
    lengths: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


class Line:
    """Documents one after the other, in the order given."""

    def __init__(self, documents: Documents) -> None:
        self.addresses = documents.addresses
        self.starts = np.concatenate([[0], np.cumsum(documents.lengths)])

    def addresses_of(self, positions: np.ndarray) -> np.ndarray:
        """Addresses of the tokens at places of the line, int64, of the same shape."""
        document = np.searchsorted(self.starts, positions, side="right") - 1
        return self.addresses[document] + positions - self.starts[document]

    def pieces(self, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Addresses [start, stop) of the contiguous pieces that make up the stretches of `length` at `starts`."""
        cuts = np.unique(np.concatenate([self.starts, starts, starts + length]))
        own = np.searchsorted(starts, cuts[:-1], side="right") - 1
        inside = (own >= 0) & (cuts[:-1] < starts[own] + length)
        first = self.addresses_of(cuts[:-1][inside])
        return first, first + np.diff(cuts)[inside]


class TrainingLanes:
    """Lanes at evenly spaced starts; each pass lays the documents in another order.

    documents: those that the group reads; lanes: examples of one step, over all workers of the group
    unroll: tokens of one example; seed: of the order (run seed and group)
    A pass reads every token at most once: `steps_per_pass` steps of lanes x unroll tokens. What is left over,
    less than a step, differs from pass to pass.
    """

    def __init__(self, documents: Documents, lanes: int, *, unroll: int, seed: int) -> None:
        self.documents = documents
        self.lanes = lanes
        self.unroll = unroll
        self.seed = seed
        self.lane_length = (documents.num_tokens - 1) // lanes  # the last target lies one token further on
        self.steps_per_pass = self.lane_length // unroll
        if self.steps_per_pass < 1:
            raise ValueError(f"{documents.num_tokens} tokens are less than one step of {lanes} x {unroll}")
        self._lines: dict[int, Line] = {}

    def ids(self, step: int) -> np.ndarray:
        """Addresses of the tokens of `step` (0-based), int64 [lanes, unroll + 1]: the last is only a target."""
        number, within = divmod(step, self.steps_per_pass)
        starts = np.arange(self.lanes, dtype=np.int64) * self.lane_length + within * self.unroll
        return self._line(number).addresses_of(starts[:, None] + np.arange(self.unroll + 1))

    def read(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Addresses [start, stop) of the pieces that the first `steps` steps read, overlapping where passes do."""
        starts = np.arange(self.lanes, dtype=np.int64) * self.lane_length
        found = []
        for number in range(-(-steps // self.steps_per_pass)):
            in_pass = min(steps - number * self.steps_per_pass, self.steps_per_pass)
            found.append(self._line(number).pieces(starts, in_pass * self.unroll))
        return np.concatenate([first for first, _ in found]), np.concatenate([last for _, last in found])

    def _line(self, number: int) -> Line:
        line = self._lines.get(number)
        if line is None:
            key = derive(self.seed, "documents", step=number)
            count = len(self.documents.lengths)
            order = np.argsort(mix(np.arange(count, dtype=np.uint64), key=key), kind="stable")
            line = Line(Documents(self.documents.addresses[order], self.documents.lengths[order]))
            for old in list(self._lines)[: 1 - KEPT_LINES]:
                self._lines.pop(old, None)
            self._lines[number] = line
        return line


class EvaluationLanes:
    """Lanes of equal length through documents in their own order, from beginning to end.

    lanes: at most this number, fewer where a lane would be shorter than one unroll
    rows: sequences of `unroll` tokens at which to stop, in whole steps; None reads all
    Fewer tokens than there are lanes are left out; the last step of all lanes may be shorter.
    """

    def __init__(self, documents: Documents, lanes: int, *, unroll: int, rows: int | None = None) -> None:
        targets = documents.num_tokens - 1
        self.lanes = max(1, min(lanes, targets // unroll))
        self.unroll = unroll
        self.lane_length = max(0, targets // self.lanes)
        if rows is not None:
            self.lane_length = min(self.lane_length, -(-rows // self.lanes) * unroll)
        self.starts = np.arange(self.lanes, dtype=np.int64) * max(0, targets // self.lanes)
        self._line = Line(documents)

    def __len__(self) -> int:
        return -(-self.lane_length // self.unroll)

    def ids(self, step: int) -> np.ndarray:
        """Addresses of the tokens of `step` (0-based), int64 [lanes, tokens + 1]: the last is only a target."""
        return self._addresses(self.starts, step)

    @property
    def streams(self) -> Sequence[int]:
        """Blocks of STREAM_LANES lanes: the same for any number of processes, since another shape may give other bits."""
        return (len(self),) * -(-self.lanes // STREAM_LANES)

    def part(self, stream: int, step: int) -> np.ndarray:
        return self._addresses(self.starts[stream * STREAM_LANES : (stream + 1) * STREAM_LANES], step)

    def _addresses(self, starts: np.ndarray, step: int) -> np.ndarray:
        tokens = min(self.unroll, self.lane_length - step * self.unroll)
        return self._line.addresses_of(starts[:, None] + step * self.unroll + np.arange(tokens + 1))

    def by_lane(self, values: np.ndarray) -> np.ndarray:
        """Values of all tokens in the order of the steps, as [lanes, lane_length]."""
        whole = self.lane_length // self.unroll * self.unroll * self.lanes
        body = values[:whole].reshape(-1, self.lanes, self.unroll).transpose(1, 0, 2).reshape(self.lanes, -1)
        return np.concatenate([body, values[whole:].reshape(self.lanes, -1)], axis=1)


def union(starts: np.ndarray, stops: np.ndarray) -> int:
    """The number of integers that lie in at least one of the intervals [start, stop)."""
    if not len(starts):
        return 0
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], np.maximum.accumulate(stops[order])
    gaps = np.maximum(starts[1:] - stops[:-1], 0)
    return int(stops[-1] - starts[0] - gaps.sum())
