"""Synchronous data parallelism: one set of weights, gradients summed over the virtual workers.

With one worker nothing is copied. Running statistics follow Goyal et al. 2017: each worker normalises
with its own batch, starting from the same statistics, and their mean is kept; a counter counts steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from odist.mesh import Mesh
from odist.optim import Optimizer
from odist.strategies.base import StrategySetup, clones, copy_into, float_buffers, label_weights
from odist.sums import GroupSum
from odist.tasks.base import Batch


class AllReduce:
    """Sync-SGD inside a group, exact: a fixed pairwise tree over the virtual workers."""

    spreads_workers = True

    @classmethod
    def of(cls, options: None, setup: StrategySetup) -> AllReduce:
        return cls(setup.mesh)

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._start: list[Tensor] = []

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.parameters = list(model.parameters())
        self.buffers = float_buffers(model)
        self._sums = GroupSum(self.mesh, [*self.parameters, *self.buffers])
        self._restored = list(model.buffers()) if self.buffers else []  # with BatchNorm's counters of batches

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        own = torch.tensor([label_weights(batch) for batch in batches], dtype=torch.float64)
        total = sum(torch.cat(self.mesh.gather(own)).tolist())
        return [total] * len(batches)

    @contextmanager
    def worker(self, worker: int) -> Iterator[None]:
        alone = self.mesh.workers == 1
        if self.buffers and not alone:
            if worker == self.mesh.local_workers.start:
                self._start = clones(self._restored)
            copy_into(self._restored, self._start)
        self.optimizer.zero_grad()
        yield
        if not alone:
            self._sums.add([*(parameter.grad for parameter in self.parameters), *clones(self.buffers)])
            self.optimizer.zero_grad()

    def step(self, step: int) -> None:
        if self.mesh.workers > 1:
            sums = self._sums.total()
            for parameter, gradient in zip(self.parameters, sums, strict=False):
                parameter.grad = gradient
            statistics = [total for total in sums[len(self.parameters) :] if total is not None]
            copy_into(self.buffers, [total / self.mesh.workers for total in statistics])
        self.optimizer.update(step)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
