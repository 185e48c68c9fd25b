"""The rows of `odist bench quick`: about one minute, every ratio from one interleaved run.

Goals come from measurements of what the machine allows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from odist.bench.criteo import BUCKETS, HIDDEN, ROWS, Fetch, hand_loop, make_config, write_store
from odist.bench.engine import Engine, batches_of, engines
from odist.bench.replica import Replicas
from odist.bench.rounds import Arm, Ratio, Row, compare, interleave
from odist.data.rows import RowStore
from odist.engine.problem import build_task, set_up_torch
from odist.run.provenance import num_cores

LOOKAHEAD = 8
LARGE, SMALL = 4096, 100


@dataclass(frozen=True)
class Size:
    """Sizes of the measurement.

    interval: steps of a turn at batch 100, and between two reloads of the teacher (a multiple of LOOKAHEAD)
    """

    rows: int = ROWS
    buckets: int = BUCKETS
    hidden: tuple[int, ...] = HIDDEN
    large: int = LARGE
    interval: int = 48
    dense_steps: int = 4


def measure(*, rounds: int, say: Callable[[str], None], size: Size | None = None) -> list[Row]:
    """Measure every row, in a temporary folder that is gone afterwards.

    say: told what is going on
    """
    size = size or Size()
    with tempfile.TemporaryDirectory(prefix="odist-bench-") as name:
        folder = Path(name)
        say(f"writing {size.rows:,} random rows")
        write_store(folder / "store", rows=size.rows, buckets=size.buckets)
        say(f"batch {SMALL}: {rounds} rounds of hand-written loops, trainer, teachers and row store")
        rows = _small(folder, size, rounds=rounds)
        say(f"batch {size.large}: {rounds} rounds of hand-written loop, trainer and teacher")
        rows += _large(folder, size, rounds=rounds)
        if num_cores() >= 2:
            say(f"two groups: {rounds} rounds of two processes and one")
            rows.append(_processes(folder, size, rounds=rounds))
        else:
            say("two groups as two processes: skipped, this process may use only one core")
        return rows


def _small(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    store, turn, steps = folder / "store", size.interval, (rounds + 2) * size.interval
    make = partial(make_config, store, batch=SMALL, hidden=size.hidden, interval=turn, log=turn)
    config = make()
    configs = {
        "plain": config,
        "taught": make(num_groups=2, peers=True),
        "ahead": make(num_groups=2, peers=True, lookahead=LOOKAHEAD),
    }
    set_up_torch(config)
    task = build_task(config)
    start = turn - 2
    order, batches = batches_of(config, task, start=start, steps=steps)
    rows = RowStore.open(store)
    with engines(folder / "small", configs, start=start, offered=steps) as (plain, taught, ahead):
        arms = [
            Arm("torch's default", hand_loop(config, task, batches, sparse=False).train, size.dense_steps),
            Arm("foreach", hand_loop(config, task, batches, sparse=False, foreach=True).train, size.dense_steps),
            Arm("hand-written", hand_loop(config, task, batches).train, turn),
            Arm("trainer", plain.train, turn),
            Arm("codistillation", taught.train, turn),
            Arm("look-ahead", ahead.train, turn),
            Arm("gather", Fetch(rows, task, order, whole=False, steps=400 * rounds + 2).read, 400),
            Arm("batch", Fetch(rows, task, order, whole=True, steps=100 * rounds + 2).read, 100),
        ]
        timings = interleave(arms, rounds=rounds, warm_up=2)
    adagrad = f"dense Adagrad as torch's default / sparse Adagrad, batch {SMALL}, {size.buckets:,} x 16 table"
    teaching = f"step with one fp32 teacher / plain step, batch {SMALL}, reload every {turn} steps"
    looking = f"the same with exchange.lookahead={LOOKAHEAD}"
    making = f"making a batch of {SMALL} (order, rows, scaling; the loader's thread) / step"
    ratios = [
        Ratio("sparse_adagrad_100", "torch's default", "hand-written", adagrad, 5.0, at_least=True),
        Ratio("sparse_adagrad_foreach_100", "foreach", "hand-written", "the same against foreach=True"),
        Ratio("trainer_100", "trainer", "hand-written", f"trainer / hand-written loop, batch {SMALL}", 1.05),
        Ratio("codistillation_100", "codistillation", "trainer", teaching, 1.36),
        Ratio("lookahead_100", "look-ahead", "trainer", looking, 1.36),
        Ratio("gather_100", "gather", "trainer", f"reading {SMALL} rows from the store / step", 0.01),
        Ratio("batch_100", "batch", "trainer", making),
    ]
    return [compare(timings, ratio, batch=SMALL) for ratio in ratios]


def _large(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    store, batch, interval = folder / "store", size.large, 50
    make = partial(make_config, store, batch=batch, hidden=size.hidden, interval=interval)
    config = make()
    configs = {"plain": config, "taught": make(num_groups=2, peers=True)}
    set_up_torch(config)
    task = build_task(config)
    start = interval - 1
    order, batches = batches_of(config, task, start=start, steps=rounds + 2)
    with engines(folder / "large", configs, start=start, offered=interval) as (plain, taught):
        fetch = Fetch(RowStore.open(store), task, order, whole=False, steps=20 * rounds + 2)
        arms = [
            Arm("hand-written", hand_loop(config, task, batches).train, 1),
            Arm("trainer", plain.train, 1),
            Arm("codistillation", taught.train, 1),
            Arm("gather", fetch.read, 20),
        ]
        timings = interleave(arms, rounds=rounds, warm_up=2)
    teaching = f"step with one fp32 teacher / plain step, batch {batch}, without a reload"
    ratios = [
        Ratio(f"trainer_{batch}", "trainer", "hand-written", f"trainer / hand-written loop, batch {batch}", 1.03),
        Ratio(f"codistillation_{batch}", "codistillation", "trainer", teaching, 1.36),
        Ratio(f"gather_{batch}", "gather", "trainer", f"reading {batch} rows from the store / step", 0.01),
    ]
    return [compare(timings, ratio, batch=batch) for ratio in ratios]


def _processes(folder: Path, size: Size, *, rounds: int) -> Row:
    turn, threads = 24, num_cores()
    make = partial(make_config, folder / "store", batch=SMALL, num_groups=2, hidden=size.hidden, log=turn)
    replicas = Replicas(folder, make())
    try:
        config = make(threads=threads)
        set_up_torch(config)
        engine = Engine(folder / "alternating", config, groups=[0, 1])
        replicas.wait()
        try:
            arms = [Arm("one process", engine.train, turn), Arm("two processes", replicas.train, turn)]
            timings = interleave(arms, rounds=rounds, warm_up=2)
        finally:
            engine.close()
    finally:
        replicas.close()
    text = f"two groups alternating in one {threads}-thread process / two 1-thread processes, batch {SMALL}"
    ratio = Ratio("two_processes_100", "one process", "two processes", text, goal=1.15, at_least=True)
    return replace(
        compare(timings, ratio, batch=2 * SMALL), cpu=[]
    )  # processor time of this process alone says nothing
