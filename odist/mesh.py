"""Who is who: the axes `group` x `replica`, and the sums over the virtual workers of a group.

Virtual workers are not processes: `workers` is the algorithm's number of data-parallel workers,
`replica` the process that carries some of them. Sums over workers run in one fixed pairwise tree,
so that their bits do not depend on how many processes carry them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh: this process's index on it and its size."""

    index: int = 0
    size: int = 1


@dataclass(frozen=True)
class Mesh:
    """The place of one process.

    group: which copy of the model it trains; replica: which of the group's processes it is
    workers: virtual workers of the group, over all its processes
    """

    group: Axis = field(default_factory=Axis)
    replica: Axis = field(default_factory=Axis)
    workers: int = 1

    @property
    def local_workers(self) -> range:
        """The virtual workers that this process carries: an aligned block."""
        each = self.workers // self.replica.size
        return range(self.replica.index * each, (self.replica.index + 1) * each)

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the group's files."""
        return self.replica.index == 0


class TreeSum:
    """Sum lists of tensors pairwise, in the order they come: ((0+1)+(2+3))+((4+5)+6).

    Holds at most log2(workers) + 1 lists. An aligned block of 2^k entries is summed to the same bits
    whoever sums it, which is what makes 1, 2 and 4 processes agree. Takes over the tensors it is given.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[int, list[Tensor | None]]] = []

    def add(self, tensors: list[Tensor | None]) -> None:
        """Add the next worker's list; None stands for zero."""
        level = 0
        while self._stack and self._stack[-1][0] == level:
            tensors = _pairwise(self._stack.pop()[1], tensors)
            level += 1
        self._stack.append((level, tensors))

    def total(self) -> list[Tensor | None]:
        """The sum over all workers; the tree is empty afterwards."""
        if not self._stack:
            raise ValueError("nothing was added to the sum")
        total = self._stack.pop()[1]
        while self._stack:
            total = _pairwise(self._stack.pop()[1], total)
        return total


def _pairwise(left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
    return [_add(a, b) for a, b in zip(left, right, strict=True)]


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    if a.is_sparse:
        # Each side is coalesced first, so the order of additions inside a row is the tree's.
        return (a.coalesce() + b.coalesce()).coalesce()
    with torch.no_grad():
        return a.add_(b)
