"""What a strategy is: it makes the virtual workers of one group agree on one set of weights.

`worker(w)` hands out the weights, buffers and optimizer state that worker w uses; `step` makes the
agreement. After `step` and `settle` the model holds what is evaluated, saved and published.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from odist.mesh import Mesh
from odist.optim import Clock, Optimizer
from odist.tasks.base import Batch


@dataclass(frozen=True)
class StrategySetup:
    """What a strategy may use: the workers of its group, and the clock by which examples become steps."""

    mesh: Mesh
    clock: Clock


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
