"""Whose turn it is: when a worker may pull weights, and what becomes of the gradient that it brings.

The rule of a parameter server without weights, processes or time, so that real servers (odist.strategies.parameter_server)
and simulated ones (odist.strategies.schedule) follow the same one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Turn:
    """One batch of one worker.

    batch: number of the batch among the worker's own; pulled: version of the weights that it learns from
    version: that its gradient makes; 0: not yet made
    """

    worker: int
    batch: int
    pulled: int
    version: int = 0

    @property
    def staleness(self) -> int:
        """Updates between pull and push."""
        return self.version - 1 - self.pulled


@dataclass
class Turns:
    """The state of a server: versions count updates, from 0.

    workers: of the group; max_staleness: largest staleness of a gradient that is used; None: any
    used: gradients whose mean makes an update, those that come first (Chen et al. 2016, "Revisiting distributed synchronous
        SGD"); workers beyond these are spare, and who comes too late is dropped. None: every gradient makes an update
    ramp: batches over which the number of active workers rises from 1 to all; 0: all from the beginning
    """

    workers: int
    max_staleness: int | None = None
    used: int | None = None
    ramp: int = 0
    version: int = 0
    batches: int = 0  # whose gradients are in the weights
    dropped: int = 0
    next_batch: list[int] = field(default_factory=list)  # of each worker
    pulled: dict[int, int] = field(default_factory=dict)  # versions under way, by worker
    gone: set[int] = field(default_factory=set)  # workers that will not come back
    waiting: list[int] = field(default_factory=list)  # workers that want to begin, the longest first
    round: list[Turn] = field(default_factory=list)  # gradients of this version that wait for the others

    def __post_init__(self) -> None:
        self.next_batch = self.next_batch or [0] * self.workers

    def ask(self, worker: int) -> None:
        """A worker wants to begin."""
        self.waiting.append(worker)

    def may_begin(self, worker: int) -> bool:
        """Whether a worker that has asked may pull the newest version now."""
        if self.used is not None:
            return all(turn.worker != worker for turn in self.round)
        if not self._is_active(worker):
            return False
        if self.max_staleness is None:
            return True
        first = next(other for other in self.waiting if self._is_active(other))
        return worker == first and self._in_time([*self.pulled.values(), self.version], at=self.version)

    def _is_active(self, worker: int) -> bool:
        before = sum(other not in self.gone for other in range(worker))
        return not self.ramp or before < 1 + (self.workers - 1) * self.batches // self.ramp

    def begin(self, worker: int) -> Turn:
        """The worker pulls the newest version for its next batch."""
        self.waiting.remove(worker)
        self.pulled[worker] = self.version
        return Turn(worker, self.next_batch[worker], self.version)

    def may_arrive(self, worker: int) -> bool:
        """Whether the gradient that a worker brings may be used now; else it waits for older ones."""
        others = [version for other, version in self.pulled.items() if other != worker]
        return self._in_time(others, at=self.version + 1)

    def _in_time(self, versions: Iterable[int], *, at: int) -> bool:
        """Whether gradients of these versions can all be used, oldest first, from version `at` on."""
        if self.max_staleness is None or self.used is not None:
            return True
        return all(at + place - version <= self.max_staleness for place, version in enumerate(sorted(versions)))

    def arrive(self, worker: int) -> list[Turn] | None:
        """The worker brings its gradient. Returns the turns whose gradients now make an update, in the order of their
        workers; an empty list if it has to wait for others, None if it comes too late and is dropped."""
        turn = Turn(worker, self.next_batch[worker], self.pulled.pop(worker), self.version + 1)
        self.next_batch[worker] += 1
        if self.used is None:
            made = [turn]
        elif turn.pulled < self.version:
            self.dropped += 1
            return None
        else:
            self.round.append(turn)
            if len(self.round) < self.used:
                return []
            made, self.round = sorted(self.round, key=lambda each: each.worker), []
        self.version += 1
        self.batches += len(made)
        return made

    def lose(self, worker: int, *, for_good: bool = False) -> None:
        """Forget what a worker has under way; it, or another in its place, begins the same batch again."""
        self.pulled.pop(worker, None)
        self.waiting = [other for other in self.waiting if other != worker]
        if for_good:
            self.gone.add(worker)

    def state_dict(self) -> dict[str, Any]:
        """What does not concern batches under way."""
        return {
            "version": self.version,
            "batches": self.batches,
            "dropped": self.dropped,
            "next_batch": list(self.next_batch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version, self.batches, self.dropped = state["version"], state["batches"], state["dropped"]
        self.next_batch = list(state["next_batch"])
