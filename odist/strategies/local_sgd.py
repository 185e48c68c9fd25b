"""Local SGD: each virtual worker trains its own copy; the copies are averaged every few steps.

Source: Stich 2019, "Local SGD converges fast and communicates little", algorithm 1. Optimizer state
stays local. After every step the model holds the workers' mean, which is what is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from odist.mesh import Mesh
from odist.optim import Optimizer
from odist.strategies import LocalSGDOptions
from odist.strategies.base import (
    StrategySetup,
    clones,
    copy_into,
    float_buffers,
    label_weights,
    place,
    tree_mean,
)
from odist.tasks.base import Batch


class LocalSGD:
    """Periodic parameter averaging.

    average_every: steps between two averages
    """

    spreads_workers = False

    @classmethod
    def of(cls, options: LocalSGDOptions, setup: StrategySetup) -> LocalSGD:
        return cls(setup.mesh, average_every=max(1, setup.clock.steps(options.average_every)))

    def __init__(self, mesh: Mesh, *, average_every: int) -> None:
        self.mesh = mesh
        self.average_every = average_every

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.parameters = list(model.parameters())
        self.buffers = float_buffers(model)
        self.optimizers = [optimizer] + [optimizer.twin() for _ in range(self.mesh.workers - 1)]
        self.mean = [parameter.data for parameter in self.parameters]
        self.weights = [clones(self.mean) for _ in range(self.mesh.workers)]
        self.statistics = [clones(self.buffers) for _ in range(self.mesh.workers)]
        self._step = 0

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        return [label_weights(batch) for batch in batches]

    @contextmanager
    def worker(self, worker: int) -> Iterator[None]:
        place(self.parameters, self.weights[worker])
        copy_into(self.buffers, self.statistics[worker])
        self.optimizers[worker].zero_grad()
        yield
        self.optimizers[worker].update(self._step)
        copy_into(self.statistics[worker], self.buffers)

    def step(self, step: int) -> None:
        self._step = step + 1
        place(self.parameters, self.mean)
        copy_into(self.parameters, tree_mean(self.weights))
        if self.buffers:
            copy_into(self.buffers, tree_mean(self.statistics))
        if self._step % self.average_every == 0:
            for worker in range(self.mesh.workers):
                copy_into(self.weights[worker], self.mean)
                copy_into(self.statistics[worker], self.buffers)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "weights": self.weights,
            "statistics": self.statistics,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for worker in range(self.mesh.workers):
            copy_into(self.weights[worker], state["weights"][worker])
            copy_into(self.statistics[worker], state["statistics"][worker])
        self._step = state["step"]
