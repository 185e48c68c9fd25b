"""Asynchronous SGD, simulated: the workers' updates follow one another, each from older weights.

The rule of a parameter server with its workers taking turns: update u uses the gradient that a worker
computed from version u - delay. In a closed loop of W workers the delay is W - 1. Real processes and
their event logs are the business of the parameter server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from odist.mesh import Mesh
from odist.optim import Optimizer
from odist.strategies import DelayedOptions
from odist.strategies.base import StrategySetup, clones, label_weights, place
from odist.tasks.base import Batch


class Delayed:
    """One update per worker and step, each on the newest weights, its gradient from `delay` updates ago.

    delay: updates between pull and push; None: workers - 1
    Running statistics are shared and updated in the order of the workers.
    """

    spreads_workers = False

    @classmethod
    def of(cls, options: DelayedOptions, setup: StrategySetup) -> Delayed:
        return cls(setup.mesh, delay=options.delay)

    def __init__(self, mesh: Mesh, *, delay: int | None = None) -> None:
        self.mesh = mesh
        self.delay = mesh.workers - 1 if delay is None else delay
        self._versions: deque[list[Tensor]] = deque(maxlen=self.delay + 1)  # the last is the newest

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters = list(model.parameters())
        self._versions.append([parameter.data for parameter in self.parameters])
        self._step = 0

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        return [label_weights(batch) for batch in batches]

    @contextmanager
    def worker(self, worker: int) -> Iterator[None]:
        place(self.parameters, self._versions[0])
        self.optimizer.zero_grad()
        yield
        if self.delay:  # the old version stays as it is; the update goes to a copy of the newest
            self._versions.append(clones(self._versions[-1]))
        place(self.parameters, self._versions[-1])
        self.optimizer.update(self._step, fraction=worker / self.mesh.workers)

    def step(self, step: int) -> None:
        self._step = step + 1

    def settle(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        older = list(self._versions)[:-1]
        return {"optimizer": self.optimizer.state_dict(), "older": older, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        newest = self._versions[-1]
        self._versions.clear()
        older = [[tensor.to(own.device) for tensor, own in zip(each, newest, strict=True)] for each in state["older"]]
        self._versions.extend([*older, newest])
        self._step = state["step"]
