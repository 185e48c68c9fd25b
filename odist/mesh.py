"""Processes by group and replica, and what the processes of a group tell each other.

Virtual workers are not processes: `workers` is the algorithm's number of data-parallel workers,
`replica` the process that carries some of them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh: this process's index on it and its size."""

    index: int = 0
    size: int = 1


@dataclass
class StopFlag:
    """Whether the processes of a group are to save and end, which each tells the others with the counts of a step.

    wanted: by this process; heard: whether any wanted it when the last counts were gathered, None before
    """

    wanted: bool = False
    heard: bool | None = None


@dataclass(frozen=True)
class Mesh:
    """The place of one process.

    group: which copy of the model it trains; replica: which of the group's processes it is
    workers: virtual workers of the group, over all its processes
    process_group: by which the processes of the group hear each other; None: all that torch.distributed knows
    across: the processes of this one's number in all groups, as replicas of each other; None where groups do not meet
    carried: virtual workers that this process carries; None: an aligned block of them
    publishes: whether the group's writer publishes for it; a parameter server does it for its workers, each its own writer
    """

    group: Axis = field(default_factory=Axis)
    replica: Axis = field(default_factory=Axis)
    workers: int = 1
    process_group: dist.ProcessGroup | None = None
    across: Mesh | None = None
    stop: StopFlag = field(default_factory=StopFlag, compare=False)
    carried: range | None = None
    publishes: bool = True

    @property
    def local_workers(self) -> range:
        """The virtual workers that this process carries."""
        if self.carried is not None:
            return self.carried
        each = self.workers // self.replica.size
        return range(self.replica.index * each, (self.replica.index + 1) * each)

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the group's files."""
        return self.replica.index == 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes of the group, in their order; all have one shape."""
        if self.replica.size == 1:
            return [tensor]
        everywhere = [torch.empty_like(tensor) for _ in range(self.replica.size)]
        dist.all_gather(everywhere, tensor.contiguous(), group=self.process_group)
        return everywhere

    def gather_ragged(self, tensor: Tensor) -> list[Tensor]:
        """As `gather`, for tensors whose first dimension differs from process to process."""
        sizes = [int(size) for size in self.gather(torch.tensor([len(tensor)]))]
        padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        return [whole[:size] for whole, size in zip(self.gather(padded), sizes, strict=True)]

    def gather_state(self, state: Any) -> list[Any]:
        """Nested dicts and lists of tensors and numbers of all processes, in their order."""
        if self.replica.size == 1:
            return [state]
        buffer = io.BytesIO()
        torch.save(state, buffer)
        pieces = self.gather_ragged(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
        return [torch.load(io.BytesIO(piece.numpy().tobytes()), weights_only=True) for piece in pieces]

    def gather_to_writer(self, state: Any) -> list[Any]:
        """As `gather_state`, in the writer alone, which holds one piece more at a time; an empty list elsewhere."""
        if self.replica.size == 1:
            return [state]
        buffer = io.BytesIO()
        if not self.is_writer:
            torch.save(state, buffer)
        sizes = [int(size) for size in self.gather(torch.tensor([buffer.tell()]))]
        if not self.is_writer:
            content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
            dist.send(content, dst=self._rank(0), group=self.process_group)
            return []
        return [state, *(self._received(size, source=source) for source, size in enumerate(sizes) if source > 0)]

    def _received(self, size: int, *, source: int) -> Any:
        content = torch.empty(size, dtype=torch.uint8)
        dist.recv(content, src=self._rank(source), group=self.process_group)
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)

    def _rank(self, replica: int) -> int:
        """The rank that torch knows a process of the group by."""
        return replica if self.process_group is None else dist.get_global_rank(self.process_group, replica)

    def from_writer(self, numbers: Sequence[int]) -> list[int]:
        """The writer's whole numbers, in every process of the group."""
        return self.gather(torch.tensor(list(numbers), dtype=torch.int64))[0].tolist() if numbers else []

    def state_from_writer(self, state: Any) -> Any:
        """The writer's nested dicts and lists of tensors, numbers and strings, in every process of the group."""
        if self.replica.size == 1:
            return state
        buffer = io.BytesIO()
        if self.is_writer:
            torch.save(state, buffer)
        size = self.from_writer([buffer.tell()])[0]
        content = torch.frombuffer(bytearray(buffer.getvalue() or size), dtype=torch.uint8)
        dist.broadcast(content, src=self._rank(0), group=self.process_group)
        return state if self.is_writer else torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)

    def gather_counts(self, own: Tensor) -> Tensor:
        """The counts of all processes' workers (float64, in their order), in the one small message of a step.

        It carries whether a process wants to stop, too: see `StopFlag`.
        """
        if self.replica.size == 1:
            return own
        said = torch.stack(self.gather(torch.cat([own, own.new_tensor([self.stop.wanted])])))
        self.stop.heard = bool(said[:, -1].any())
        return said[:, :-1].flatten()

    def any(self, answer: bool) -> bool:
        """Whether `answer` is true in any process of the group."""
        return any(int(said) for said in self.gather(torch.tensor(int(answer))))
