"""Paired timing: the arms of a comparison run in turns, round by round, and are compared within a round.

A machine that slows down for a while then slows all arms of a round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arm:
    """One way of doing the work.

    run: makes the given number of steps; steps: of one turn
    """

    name: str
    run: Callable[[int], None]
    steps: int


@dataclass(frozen=True)
class Timing:
    """Seconds per step of one turn, by the clock and of processor time of this process (all its threads)."""

    wall: float
    cpu: float


Timings = dict[str, list[Timing]]


@dataclass(frozen=True)
class Row:
    """One ratio with its goal.

    ratios, cpu: one per round, by the clock and by processor time (empty where several processes work)
    goal: None for a number that is only shown; at_least: whether larger is better
    examples_per_second: medians over the rounds, by arm
    """

    name: str
    text: str
    ratios: list[float]
    goal: float | None
    at_least: bool = False
    cpu: list[float] = field(default_factory=list)
    examples_per_second: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.at_least else self.median <= self.goal


@dataclass(frozen=True)
class Ratio:
    """Seconds of arm `over` divided by those of arm `under`, as a row of the table.

    text: what the row says; goal, at_least: as of Row
    """

    name: str
    over: str
    under: str
    text: str
    goal: float | None = None
    at_least: bool = False


def interleave(arms: Sequence[Arm], *, rounds: int, warm_up: int = 0) -> Timings:
    """Time every arm once per round, each round beginning with another arm.

    warm_up: steps that each arm makes before the first round
    """
    if warm_up:
        for arm in arms:
            arm.run(warm_up)
    timings: Timings = {arm.name: [] for arm in arms}
    for number in range(rounds):
        first = number % len(arms)
        for arm in [*arms[first:], *arms[:first]]:
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            arm.run(arm.steps)
            spent = Timing((time.perf_counter() - wall) / arm.steps, (time.process_time() - cpu) / arm.steps)
            timings[arm.name].append(spent)
    return timings


def compare(timings: Timings, ratio: Ratio, *, batch: int) -> Row:
    """The ratio of two arms, round by round.

    batch: examples of a step of either arm
    """
    pairs = list(zip(timings[ratio.over], timings[ratio.under], strict=True))
    rates = {arm: batch / statistics.median(t.wall for t in timings[arm]) for arm in (ratio.over, ratio.under)}
    return Row(
        ratio.name,
        ratio.text,
        [a.wall / b.wall for a, b in pairs],
        ratio.goal,
        ratio.at_least,
        cpu=[a.cpu / b.cpu for a, b in pairs if b.cpu > 0],
        examples_per_second=rates,
    )
