"""What a strategy is: it makes the virtual workers of one group agree on one set of weights.

`worker(w)` hands out the weights, buffers and optimizer state that worker w uses; `step` makes the
agreement. After `step` and `settle` the model holds what is evaluated, saved and published.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from odist.mesh import Mesh
from odist.optim import Clock, Optimizer
from odist.sums import TreeSum
from odist.tasks.base import Batch


@dataclass(frozen=True)
class StrategySetup:
    """What a strategy may use: the workers of its group, and the clock by which examples become steps.

    seed: of the run; batch: examples of a worker's batch; folder: of the run, None where nothing is written
    links: in a process of a worker, its connections to the server and its shards (odist.strategies.wire)
    """

    mesh: Mesh
    clock: Clock
    seed: int = 0
    batch: int = 0
    folder: Path | None = None
    links: Sequence[Any] = ()


@dataclass(frozen=True)
class Unit:
    """One batch of one virtual worker. batch: its number among the worker's own."""

    worker: int
    batch: int


@dataclass
class Losses:
    """Sums over the examples of some batches.

    count, soft_count: label weights of all, and of those that had a teacher
    """

    label: Tensor | float = 0.0
    distillation: Tensor | float = 0.0
    count: float = 0.0
    soft_count: float = 0.0
    examples: float = 0.0

    def add(self, other: Losses) -> None:
        """Add other batches' sums; losses in the order and type in which they come."""
        self.label = self.label + other.label
        if other.soft_count:
            self.distillation = self.distillation + other.distillation
        self.count += other.count
        self.soft_count += other.soft_count
        self.examples += other.examples

    def numbers(self) -> Tensor:
        """float64 [5], from which `from_numbers` makes the same bits again."""
        return torch.tensor([float(getattr(self, field.name)) for field in fields(Losses)], dtype=torch.float64)

    @classmethod
    def from_numbers(cls, numbers: Tensor) -> Losses:
        label, distillation, *counts = numbers.unbind()
        return cls(label.float(), distillation.float(), *(float(count) for count in counts))


class Strategy(Protocol):
    """Agreement inside one group.

    spreads_workers: whether several processes may carry the workers of one group
    """

    spreads_workers: bool

    @classmethod
    def of(cls, options: Any, setup: StrategySetup) -> Strategy:
        """Make the strategy. options: of the dataclass that it declares in `odist.strategies`, None without one."""
        ...

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take the model and its optimizer, once, before the first step or `load_state_dict`."""
        ...

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        """What each worker's summed loss is divided by, known before any forward."""
        ...

    def worker(self, worker: int) -> AbstractContextManager[nn.Module | None]:
        """Put worker `worker`'s weights, buffers and optimizer state in place.

        The module that it gives, if any, is called in place of the model for the forward that is differentiated.
        """
        ...

    def step(self, step: int) -> None:
        """Make the update of `step` (0-based)."""
        ...

    def settle(self) -> None:
        """Put into the model what is evaluated, saved and published, if `step` has not; all processes call it together."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Scheduled(Protocol):
    """A strategy that says itself which worker computes which batch; others give each worker one batch a step."""

    def units(self, step: int) -> Sequence[Unit]:
        """What this process computes in `step` (0-based), in this order; asked from several threads, and in any order."""
        ...

    def log(self) -> dict[str, Any]:
        """What a row of metrics.jsonl says of it."""
        ...


@runtime_checkable
class Serving(Protocol):
    """A strategy whose workers compute in other processes."""

    def take_losses(self) -> list[Losses]:
        """What they have reported since the last call, in the order of their gradients."""
        ...


def units_of(strategy: Strategy, mesh: Mesh, *, step: int) -> Sequence[Unit]:
    """The batches that this process computes in `step`, in this order."""
    if isinstance(strategy, Scheduled):
        return strategy.units(step)
    return [Unit(worker, step) for worker in mesh.local_workers]


def label_weights(batch: Batch) -> float:
    """Sum of the label weights of one batch."""
    return float(batch.weights.sum())


def float_buffers(model: nn.Module) -> list[Tensor]:
    """The buffers that hold running statistics (BatchNorm's means and variances)."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors, detached."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Overwrite each target by its source."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def place(parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Make `parameters` use the storage of `weights`, without copying."""
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.data = weight


def tree_sum(lists: Sequence[list[Tensor | None]]) -> list[Tensor | None]:
    """Sum over workers of lists of tensors, in the fixed tree; None stands for zero. The tensors are overwritten."""
    tree = TreeSum()
    for tensors in lists:
        tree.add(tensors)
    return tree.total()


def mean_buffers(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Mean over workers of running statistics; counters are those of the first."""
    if len(lists) == 1:
        return list(lists[0])
    means = iter(tree_mean([[each for each in one if each.is_floating_point()] for one in lists]))
    return [next(means) if own.is_floating_point() else own for own in lists[0]]


def tree_mean(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Mean over workers of lists of tensors, summed in the fixed tree."""
    tree = TreeSum()
    for tensors in lists:
        tree.add(list(clones(tensors)))
    return [tensor / len(lists) for tensor in tree.total() if tensor is not None]
