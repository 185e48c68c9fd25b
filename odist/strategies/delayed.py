"""Asynchronous SGD, simulated: the workers' updates follow one another, each from older weights.

The rule of a parameter server with its workers taking turns: update u uses the gradient that a worker
computed from version u - delay. In a closed loop of W workers the delay is W - 1. Workers of other speeds, and those of a real
run, take turns as odist.strategies.schedule says.
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
from odist.strategies.base import (
    StrategySetup,
    Unit,
    clones,
    copy_into,
    label_weights,
    mean_buffers,
    place,
    tree_sum,
)
from odist.strategies.schedule import Schedule, Scheduled
from odist.tasks.base import Batch


class Delayed:
    """One update per worker and step, each on the newest weights, its gradient from `delay` updates ago.

    delay: updates between pull and push; None: workers - 1
    Running statistics are shared and updated in the order of the workers.
    """

    spreads_workers = False

    @classmethod
    def of(cls, options: DelayedOptions, setup: StrategySetup) -> Delayed | TakingTurns:
        schedule = options.schedule(setup)
        if schedule is not None:
            return TakingTurns(setup.mesh, schedule, num_steps=setup.clock.num_steps)
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


class TakingTurns:
    """The updates of a parameter server in one process: each from the version that its schedule names.

    Versions are kept as long as a worker has them under way. Running statistics and counters are those of the worker that
    pushed last: each continues those that it pulled.
    """

    spreads_workers = False

    def __init__(self, mesh: Mesh, schedule: Schedule, *, num_steps: int) -> None:
        self.mesh = mesh
        self.schedule = schedule
        self.num_steps = num_steps
        self._versions: dict[int, tuple[list[Tensor], list[Tensor]]] = {}  # parameters and buffers
        self._newest = 0
        self._left: list[Scheduled] = []  # turns of this step that are still to come
        self._round: list[tuple[list[Tensor | None], list[Tensor]]] = []  # gradients and buffers of one update
        self._staleness: list[int] = []
        self._step = 0

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters = list(model.parameters())
        self.buffers = list(model.buffers())
        self._versions[0] = ([parameter.data for parameter in self.parameters], clones(self.buffers))

    def units(self, step: int) -> Sequence[Unit]:
        return [Unit(each.turn.worker, each.turn.batch) for each in self.schedule.step(step)]

    def count(self, batches: Sequence[Batch]) -> Sequence[float]:
        self._left = list(self.schedule.step(self._step))
        sizes = [sum(other.turn.version == each.turn.version for other in self._left) for each in self._left]
        return [label_weights(batch) * size for batch, size in zip(batches, sizes, strict=True)]

    @contextmanager
    def worker(self, worker: int) -> Iterator[None]:
        now = self._left.pop(0)
        weights, buffers = self._versions[now.turn.pulled]
        place(self.parameters, weights)
        copy_into(self.buffers, buffers)
        self.optimizer.zero_grad()
        yield
        self._staleness.append(now.turn.staleness)
        self._round.append(([parameter.grad for parameter in self.parameters], clones(self.buffers)))
        if not self._left or self._left[0].turn.version != now.turn.version:
            self._update(now, fraction=1 - (len(self._left) + len(self._round)) / len(self.schedule.step(self._step)))

    def _update(self, now: Scheduled, *, fraction: float) -> None:
        gathered, self._round = self._round, []
        newest, _ = self._versions[self._newest]
        # an older version stays as it is while somebody has it under way; the update goes to a copy
        place(self.parameters, clones(newest) if self._newest in now.needed else newest)
        for parameter, gradient in zip(self.parameters, tree_sum([own for own, _ in gathered]), strict=True):
            parameter.grad = gradient
        copy_into(self.buffers, mean_buffers([own for _, own in gathered]))
        self.optimizer.update(self._step, fraction=fraction)
        self._newest = now.turn.version
        self._versions[self._newest] = ([parameter.data for parameter in self.parameters], clones(self.buffers))
        self._versions = {version: kept for version, kept in self._versions.items() if version in now.needed}

    def step(self, step: int) -> None:
        self._step = step + 1

    def settle(self) -> None:
        pass

    def log(self) -> dict[str, Any]:
        """Staleness since the last row of the log, in updates."""
        found, self._staleness = self._staleness, []
        return {"staleness": sum(found) / len(found), "staleness_max": max(found)} if found else {}

    def state_dict(self) -> dict[str, Any]:
        over = self._step >= self.num_steps  # then nobody comes back with what is under way
        older = {} if over else {version: kept for version, kept in self._versions.items() if version != self._newest}
        return {
            "optimizer": self.optimizer.state_dict(),
            "versions": older,
            "newest": self._newest,
            "step": self._step,
            "staleness": self._staleness,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        device = self.parameters[0].device
        self._newest = state["newest"]
        self._versions = {
            version: ([tensor.to(device) for tensor in weights], [tensor.to(device) for tensor in buffers])
            for version, (weights, buffers) in state["versions"].items()
        }
        self._versions[self._newest] = ([parameter.data for parameter in self.parameters], clones(self.buffers))
        self._step, self._staleness = state["step"], state["staleness"]
