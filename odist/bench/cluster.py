"""What it costs that several processes share the gradients of one group: equal bits, speed, and plain DDP beside them.

Criteo's model at the paper's hidden layers with a dense embedding table, one virtual worker a process, so that a gradient
of some megabytes has to be summed after a short forward and backward: the worst case of data parallelism.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from odist.bench import rank
from odist.bench.criteo import HIDDEN, make_config, write_store
from odist.bench.process import Process
from odist.bench.rounds import Row
from odist.config.identity import to_dict
from odist.config.read import load
from odist.engine.problem import build_model, build_task
from odist.files import write_atomically

BATCH = 100


@dataclass(frozen=True)
class Size:
    """The size of the measurement; tests take smaller ones.

    processes: how many share a group, one after the other; steps: of one turn
    """

    rows: int = 60_000
    buckets: int = 26_000
    hidden: tuple[int, ...] = HIDDEN
    processes: tuple[int, ...] = (1, 2, 4, 8)
    steps: int = 4


@dataclass(frozen=True)
class Turn:
    """One turn of an arm: seconds of a step, of the slowest process, and bytes that a process sent in it, on average."""

    seconds: float
    sent: float


def measure(*, rounds: int, say: Callable[[str], None], size: Size | None = None) -> list[Row]:
    """Measure every row of the table."""
    size = size or Size()
    with tempfile.TemporaryDirectory(prefix="odist-bench-") as name:
        folder = Path(name)
        write_store(folder / "store", rows=size.rows, buckets=size.buckets)
        gradient = _num_bytes(folder, size)
        rows = []
        for number in size.processes:
            say(f"cluster: {number} process{'es' if number > 1 else ''}")
            turns = _turns(folder / str(number), folder / "store", number, size, rounds=rounds)
            rows += _rows(turns, number, gradient=gradient)
        return rows


def _configure(folder: Path, store: Path, number: int, size: Size) -> None:
    content = to_dict(make_config(store, batch=BATCH, log=10, hidden=size.hidden))
    content["workers"] = number
    content["optim"]["sparse"] = False
    for reduce in ("exact", "fast"):
        content["algorithm"]["reduce"] = reduce
        write_atomically(folder / f"{reduce}.yaml", json.dumps(content))


def _num_bytes(folder: Path, size: Size) -> int:
    _configure(folder, folder / "store", 1, size)
    config = load(folder / "exact.yaml")
    return rank.num_bytes(build_model(config, build_task(config), group=0))


def _turns(folder: Path, store: Path, number: int, size: Size, *, rounds: int) -> dict[str, list[Turn]]:
    """Every arm's turns among so many processes; each round begins with another arm."""
    folder.mkdir()
    _configure(folder, store, number, size)
    processes: list[Process] = []
    try:
        for index in range(number):
            log = folder / f"rank-{index}.log"
            processes.append(Process("odist.bench.rank", folder, index, number, log=log))
        for process in processes:
            process.wait()
        names = ["exact", "fast", "ddp", *(("all_reduce", "tree") if number > 1 else ())]
        turns: dict[str, list[Turn]] = {name: [] for name in names}
        for name in names:
            _turn(processes, name, 2)  # warm
        for round_number in range(rounds):
            first = round_number % len(names)
            for name in [*names[first:], *names[:first]]:
                turns[name].append(_turn(processes, name, size.steps))
        return turns
    finally:
        for process in processes:
            process.close()


def _turn(processes: list[Process], name: str, steps: int) -> Turn:
    for process in processes:
        process.begin(name, steps)
    answers = [process.wait("done") for process in processes]
    return Turn(max(seconds for seconds, _ in answers), statistics.mean(sent for _, sent in answers))


def _rows(turns: Mapping[str, list[Turn]], number: int, *, gradient: int) -> list[Row]:
    def seconds(name: str, over: str, under: str, text: str, goal: float | None = None) -> Row:
        pairs = list(zip(turns[over], turns[under], strict=True))
        rates = {arm: number * BATCH / statistics.median(turn.seconds for turn in turns[arm]) for arm in (over, under)}
        ratios = [a.seconds / b.seconds for a, b in pairs]
        return Row(f"{name}_{number}", text, ratios, goal, examples_per_second={} if "tree" in (over, under) else rates)

    def sent(arm: str, text: str, goal: float | None = None) -> Row:
        return Row(f"sent_{arm}_{number}", text, [turn.sent / gradient for turn in turns[arm]], goal)

    processes = f"{number} process{'es' if number > 1 else ''}"
    rows = [
        seconds("fast", "fast", "ddp", f"{processes}: step with algorithm.reduce=fast / of plain DDP", 1.03),
        seconds("exact", "exact", "ddp", f"{processes}: step with algorithm.reduce=exact / of plain DDP"),
    ]
    if number == 1:
        return rows
    rows += [seconds("tree", "tree", "all_reduce", f"{processes}: exact sum of a gradient / all_reduce", 2.0)]
    if not rank.COUNTERS.is_file():
        return rows
    megabytes = f"{gradient / 1e6:.1f} MB"
    return [
        *rows,
        sent("exact", f"{processes}: bytes that a process sends in a step, exact / the gradient ({megabytes})", 2.0),
        sent("fast", f"{processes}: the same, fast"),
        sent("ddp", f"{processes}: the same, plain DDP"),
    ]
