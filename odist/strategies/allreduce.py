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
from odist.strategies import AllReduceOptions
from odist.strategies.base import StrategySetup, clones, copy_into, float_buffers, label_weights
from odist.sums import GroupSum
from odist.tasks.base import Batch


class AllReduce:
    """Sync-SGD inside a group, exact: a fixed pairwise tree over the virtual workers."""

    spreads_workers = True

    @classmethod
    def of(cls, options: AllReduceOptions, setup: StrategySetup) -> AllReduce:
        if options.reduce == "fast" and setup.mesh.replica.size > 1:
            from odist.strategies.data_parallel import DataParallel

            return DataParallel(setup.mesh, compress=options.compress == "bf16")
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
        total = sum(self.mesh.gather_counts(own).tolist())
        return [total] * len(batches)

    @contextmanager
    def worker(self, worker: int) -> Iterator[nn.Module | None]:
        alone = self.mesh.workers == 1
        if not alone:
            self._begin(worker)
        self.optimizer.zero_grad()
        yield None
        if not alone:
            self._sums.add([*(parameter.grad for parameter in self.parameters), *clones(self.buffers)])
            self.optimizer.zero_grad()

    def _begin(self, worker: int) -> None:
        """Give a worker the statistics that all begin the step with."""
        if worker == self.mesh.local_workers.start:
            self._start = clones(self._restored)
        copy_into(self._restored, self._start)

    def _keep_mean(self, sums: Sequence[Tensor | None]) -> None:
        """Take the mean of the workers' statistics. sums: over all workers"""
        copy_into(self.buffers, [total / self.mesh.workers for total in sums if total is not None])

    def step(self, step: int) -> None:
        if self.mesh.workers > 1:
            sums = self._sums.total()
            for parameter, gradient in zip(self.parameters, sums, strict=False):
                parameter.grad = gradient
            self._keep_mean(sums[len(self.parameters) :])
        self.optimizer.update(step)

    def settle(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
