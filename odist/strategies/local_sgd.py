"""Local SGD: each virtual worker trains its own copy; the copies are averaged every few steps.

Source: Stich 2019, "Local SGD converges fast and communicates little", algorithm 1. Optimizer state
stays local. What is evaluated is the workers' mean, which is made when somebody asks for it. With synchronous steps first it is
post-local SGD: Lin et al. 2020, "Don't use large mini-batches, use local SGD", algorithm 2.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from odist.mesh import Mesh
from odist.optim import Optimizer
from odist.strategies import LocalSGDOptions
from odist.strategies.allreduce import AllReduce
from odist.strategies.base import (
    StrategySetup,
    clones,
    copy_into,
    float_buffers,
    label_weights,
    place,
)
from odist.sums import GroupSum
from odist.tasks.base import Batch


class LocalSGD:
    """Periodic parameter averaging.

    average_every: steps between two averages
    sync_steps: steps before the local ones, in which all workers share one set of weights and the sum of their gradients
    """

    spreads_workers = True

    @classmethod
    def of(cls, options: LocalSGDOptions, setup: StrategySetup) -> LocalSGD:
        return cls(
            setup.mesh,
            average_every=max(1, setup.clock.steps(options.average_every)),
            sync_steps=round(options.sync_share * setup.clock.num_steps),
        )

    def __init__(self, mesh: Mesh, *, average_every: int, sync_steps: int = 0) -> None:
        self.mesh = mesh
        self.average_every = average_every
        self.sync_steps = sync_steps

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        number = len(self.mesh.local_workers)
        self.parameters = list(model.parameters())
        self.buffers = float_buffers(model)
        self.counters = [buffer for buffer in model.buffers() if not buffer.is_floating_point()]
        self.optimizers = [optimizer] + [optimizer.twin() for _ in range(number - 1)]
        self.mean = [parameter.data for parameter in self.parameters]
        self.weights = [clones(self.mean) for _ in range(number)]
        self.statistics = [clones(self.buffers) for _ in range(number)]
        self._sums = GroupSum(self.mesh, [*self.mean, *self.buffers])
        self._sync = AllReduce(self.mesh)
        self._sync.prepare(model, optimizer)
        self._start: list[Tensor] = []
        self._step = 0
        self.settled = True

    @property
    def in_sync(self) -> bool:
        """Whether the next step is one of the synchronous ones."""
        return self._step < self.sync_steps

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        return self._sync.count(batches) if self.in_sync else [label_weights(batch) for batch in batches]

    @contextmanager
    def worker(self, worker: int) -> Iterator[None]:
        if self.in_sync:
            with self._sync.worker(worker):
                yield
            return
        index = worker - self.mesh.local_workers.start
        if index == 0:
            self._start = clones(self.counters)
        copy_into(self.counters, self._start)  # they count steps, however many workers a process has
        place(self.parameters, self.weights[index])
        copy_into(self.buffers, self.statistics[index])
        self.optimizers[index].zero_grad()
        yield
        self.optimizers[index].update(self._step)
        copy_into(self.statistics[index], self.buffers)

    def step(self, step: int) -> None:
        if self.in_sync:
            self._sync.step(step)
            self._step = step + 1
            if self._step == self.sync_steps:
                self._part()
            return
        self._step = step + 1
        self.settled = False
        place(self.parameters, self.mean)
        self.agree()

    def agree(self) -> None:
        """Let the workers go on from their mean, where that is due after the step that was made."""
        if self._step % self.average_every == 0:
            self.settle()
            self._spread()

    def settle(self) -> None:
        if self.settled:
            return
        copy_into([*self.mean, *self.buffers], self.means())
        self.settled = True

    def means(self, own: Sequence[Sequence[Tensor]] | None = None, *, sums: GroupSum | None = None) -> list[Tensor]:
        """Means over all workers of the group, whichever of its processes carry them; all call it together.

        own: one list for each of this process's workers, None for its weights and statistics; sums: of lists of these shapes
        """
        sums = sums or self._sums
        for tensors in own or [self._own(index) for index in range(len(self.weights))]:
            sums.add(list(clones(tensors)))
        return [total / self.mesh.workers for total in sums.total() if total is not None]

    def _own(self, index: int) -> list[Tensor]:
        return [*self.weights[index], *self.statistics[index]]

    def _spread(self) -> None:
        """Give every worker the model's weights and statistics."""
        for index in range(len(self.weights)):
            copy_into(self._own(index), [*self.mean, *self.buffers])

    def _part(self) -> None:
        """After the synchronous steps: all begin with the same weights and the same state of the optimizer."""
        self._spread()
        state = self.optimizers[0].state_dict()
        for optimizer in self.optimizers[1:]:
            optimizer.load_state_dict(copy.deepcopy(state))

    def state_dict(self) -> dict[str, Any]:
        parts = self.mesh.gather_to_writer(
            {
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers[: 1 if self.in_sync else None]],
                "weights": [] if self.in_sync else self.weights,
                "statistics": [] if self.in_sync else self.statistics,
            }
        )
        joined = {key: [one for part in parts for one in part[key]] for key in ("optimizers", "weights", "statistics")}
        return {**joined, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self.settled = True  # the model was saved so
        for index, worker in enumerate(self.mesh.local_workers):
            if self.in_sync:
                self.optimizers[index].load_state_dict(copy.deepcopy(state["optimizers"][0]))
                continue
            self.optimizers[index].load_state_dict(state["optimizers"][worker])
            copy_into(self.weights[index], state["weights"][worker])
            copy_into(self.statistics[index], state["statistics"][worker])
