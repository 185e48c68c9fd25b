"""Which worker's gradient makes which update: simulated by workers of given speeds, or read from the log of a real run.

A schedule is known before any weights are: it is a function of seeds or of a file, so it is not saved and can be asked ahead.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from odist.errors import UserError
from odist.rng import derive
from odist.strategies.events import read_events
from odist.strategies.turns import Turn, Turns

SHAPE = 2.0  # of the Pareto distribution of heavy-tailed times, whose deviation is infinite
SLOWER, EVERY = 4.0, 10  # stragglers: one worker in ten, at least one, takes four times as long
KEPT_STEPS = 16


@dataclass(frozen=True)
class Scheduled:
    """A turn and what comes after it. needed: versions that workers have under way then, in rising order."""

    turn: Turn
    needed: tuple[int, ...]


class Schedule:
    """The turns of each step, in their order.

    begin: starts the sequence of all turns; per_step: turns of a step; threads may ask, for steps not far apart
    """

    def __init__(self, begin: Callable[[], Iterator[Scheduled]], *, per_step: int) -> None:
        self._begin = begin
        self._turns = begin()
        self._per_step = per_step
        self._made = 0
        self._steps: dict[int, list[Scheduled]] = {}
        self._lock = threading.Lock()

    def step(self, step: int) -> list[Scheduled]:
        """The turns of `step` (0-based). Raises UserError if the log of a real run ends before."""
        with self._lock:
            if step < self._made and step not in self._steps:  # long ago: once more from the beginning
                self._turns, self._made, self._steps = self._begin(), 0, {}
            while step not in self._steps:
                turns = list(islice(self._turns, self._per_step))
                if len(turns) < self._per_step:
                    raise UserError(
                        f"algorithm.events: that run has made {self._made} steps, and this one needs more. Give it the same "
                        "length (train.max_examples, train.passes)."
                    )
                self._steps[self._made] = turns
                self._made += 1
                self._steps.pop(self._made - 1 - KEPT_STEPS, None)
            return self._steps[step]


def simulated(turns: Callable[[], Turns], *, seconds: Callable[[int, int], float]) -> Iterator[Scheduled]:
    """Turns of workers that take `seconds(worker, batch)` for a batch and pull again as soon as they may, without end."""
    state = turns()
    now = 0.0
    under_way: list[tuple[float, int]] = []
    arrived: list[int] = []
    for worker in range(state.workers):
        state.ask(worker)
    while True:
        for worker in list(state.waiting):
            if state.may_begin(worker):
                turn = state.begin(worker)
                heapq.heappush(under_way, (now + seconds(worker, turn.batch), worker))
        ready = next((worker for worker in arrived if state.may_arrive(worker)), None)
        if ready is None:
            now, worker = heapq.heappop(under_way)
            arrived.append(worker)
            continue
        arrived.remove(ready)
        made = state.arrive(ready)
        state.ask(ready)
        if made:
            needed = tuple(sorted({*state.pulled.values(), state.version}))
            for turn in made:
                yield Scheduled(turn, needed)


def recorded(path: Path, *, workers: int, batch: int, used: int | None) -> Iterator[Scheduled]:
    """Turns of a real run. Raises UserError if it had other workers or batches."""
    under_way: dict[int, int] = {}
    made: list[Turn] = []
    version = 0

    def whole() -> Iterator[Scheduled]:
        needed = tuple(sorted({*under_way.values(), version}))
        for turn in made:
            yield Scheduled(turn, needed)
        made.clear()

    for event in read_events(path):
        kind = event["event"]
        if kind == "start":
            same: dict[str, tuple[Any, Any]] = {
                "workers": (event["workers"], workers),
                "train.batch": (event["batch"], batch),
            }
            spare = [None if number is None else workers - number for number in (event["used"], used)]
            same["algorithm.backup_workers"] = (spare[0], spare[1])
            for key, (there, here) in same.items():
                if there != here:
                    raise UserError(f"{path}: that run has {key}={there}, and this one has {here}. Type {key}={there}.")
        elif kind == "pull":
            under_way[event["worker"]] = event["version"]
        elif kind == "update":
            if made and event["version"] != version:
                yield from whole()
            version = event["version"]
            under_way.pop(event["worker"], None)
            made.append(Turn(event["worker"], event["batch"], event["pulled"], version))
        elif kind in ("drop", "lost"):
            under_way.pop(event["worker"], None)
    yield from whole()


def seconds_of(speeds: str, *, workers: int, seed: int, group: int) -> Callable[[int, int], float]:
    """How long worker w takes for its batch number b, in units of the fastest: a function of the seed.

    speeds: constant, heavy_tailed (a new draw of a Pareto distribution for every batch) or stragglers (the same few workers are
    slow all along)
    """
    if speeds == "constant":
        return lambda worker, batch: 1.0
    if speeds == "stragglers":
        count = max(1, workers // EVERY)
        generator = np.random.default_rng(derive(seed, "stragglers", group=group))
        slow = frozenset(generator.permutation(workers)[:count].tolist())
        return lambda worker, batch: SLOWER if worker in slow else 1.0

    def heavy_tailed(worker: int, batch: int) -> float:
        uniform = (derive(seed, "speed", group=group, replica=worker, step=batch) + 1) / 2.0**63
        return float(uniform ** (-1 / SHAPE))

    return heavy_tailed
