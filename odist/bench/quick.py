"""The rows of `odist bench quick`: about one minute, every ratio from one interleaved run.

Goals come from measurements of what the machine allows; they are shown beside the numbers and enforced
by nobody.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from odist.bench.criteo import BUCKETS, HIDDEN, ROWS, Fetch, HandLoop, make_config, write_store
from odist.bench.engine import Engine, batches_of
from odist.bench.replica import Replicas
from odist.bench.rounds import Arm, Row, compare, interleave
from odist.data.rows import RowStore
from odist.engine.wiring import build_task, set_up_torch
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
            say("two groups as two processes: left out, this machine lends one core")
        return rows


def _small(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    store, turn, steps = folder / "store", size.interval, (rounds + 2) * size.interval
    config = make_config(store, batch=SMALL, hidden=size.hidden, interval=turn, log=turn)
    taught = make_config(store, batch=SMALL, hidden=size.hidden, interval=turn, log=turn, num_groups=2, peers=True)
    ahead = make_config(
        store,
        batch=SMALL,
        hidden=size.hidden,
        interval=turn,
        log=turn,
        num_groups=2,
        peers=True,
        lookahead=LOOKAHEAD,
    )
    set_up_torch(config)
    task = build_task(config)
    start = turn - 2
    order, batches = batches_of(config, task, start=start, steps=steps)
    rows = RowStore.open(store)
    with ExitStack() as stack:
        engines = []
        for label, one in (("plain", config), ("taught", taught), ("ahead", ahead)):
            engine = Engine(folder / f"small-{label}", one, start=start)
            stack.callback(engine.close)
            if one.num_groups == 2:
                engine.offer(steps=steps)
            engines.append(engine)
        plain, teacher, lookahead = engines
        hand = HandLoop(config, task, batches)
        dense = HandLoop(config, task, batches, sparse=False)
        foreach = HandLoop(config, task, batches, sparse=False, foreach=True)
        fetch = Fetch(rows, task, order, whole=False, steps=400 * rounds + 2)
        whole = Fetch(rows, task, order, whole=True, steps=100 * rounds + 2)
        arms = [
            Arm("torch's default", dense.train, size.dense_steps),
            Arm("foreach", foreach.train, size.dense_steps),
            Arm("hand-written", hand.train, turn),
            Arm("trainer", plain.train, turn),
            Arm("codistillation", teacher.train, turn),
            Arm("look-ahead", lookahead.train, turn),
            Arm("gather", fetch.read, 400),
            Arm("batch", whole.read, 100),
        ]
        _warm_up(arms, steps=2)
        timings = interleave(arms, rounds=rounds)
    table = f"{size.buckets:,} x 16 table"
    return [
        compare(timings, "torch's default", "hand-written", name="sparse_adagrad_100", batch=SMALL, goal=5.0,
                at_least=True, text=f"dense Adagrad as torch's default / sparse Adagrad, batch {SMALL}, {table}"),
        compare(timings, "foreach", "hand-written", name="sparse_adagrad_foreach_100", batch=SMALL,
                text="the same against foreach=True"),
        compare(timings, "trainer", "hand-written", name="trainer_100", batch=SMALL, goal=1.05,
                text=f"trainer / hand-written loop, batch {SMALL}"),
        compare(timings, "codistillation", "trainer", name="codistillation_100", batch=SMALL, goal=1.36,
                text=f"step with one fp32 teacher / plain step, batch {SMALL}, reload every {turn} steps"),
        compare(timings, "look-ahead", "trainer", name="lookahead_100", batch=SMALL, goal=1.36,
                text=f"the same with exchange.lookahead={LOOKAHEAD}"),
        compare(timings, "gather", "trainer", name="gather_100", batch=SMALL, goal=0.01,
                text=f"reading {SMALL} rows from the store / step"),
        compare(timings, "batch", "trainer", name="batch_100", batch=SMALL,
                text=f"making a batch of {SMALL} (order, rows, scaling; the loader's thread) / step"),
    ]  # fmt: skip


def _large(folder: Path, size: Size, *, rounds: int) -> list[Row]:
    store, batch, interval = folder / "store", size.large, 50
    config = make_config(store, batch=batch, hidden=size.hidden, interval=interval)
    taught = make_config(store, batch=batch, hidden=size.hidden, interval=interval, num_groups=2, peers=True)
    set_up_torch(config)
    task = build_task(config)
    start = interval - 1
    order, batches = batches_of(config, task, start=start, steps=rounds + 2)
    with ExitStack() as stack:
        engines = []
        for label, one in (("plain", config), ("taught", taught)):
            engine = Engine(folder / f"large-{label}", one, start=start)
            stack.callback(engine.close)
            if one.num_groups == 2:
                engine.offer(steps=interval)
            engines.append(engine)
        hand = HandLoop(config, task, batches)
        fetch = Fetch(RowStore.open(store), task, order, whole=False, steps=20 * rounds + 2)
        arms = [
            Arm("hand-written", hand.train, 1),
            Arm("trainer", engines[0].train, 1),
            Arm("codistillation", engines[1].train, 1),
            Arm("gather", fetch.read, 20),
        ]
        _warm_up(arms, steps=2)
        timings = interleave(arms, rounds=rounds)
    return [
        compare(timings, "trainer", "hand-written", name=f"trainer_{batch}", batch=batch, goal=1.03,
                text=f"trainer / hand-written loop, batch {batch}"),
        compare(timings, "codistillation", "trainer", name=f"codistillation_{batch}", batch=batch, goal=1.36,
                text=f"step with one fp32 teacher / plain step, batch {batch}, without a reload"),
        compare(timings, "gather", "trainer", name=f"gather_{batch}", batch=batch, goal=0.01,
                text=f"reading {batch} rows from the store / step"),
    ]  # fmt: skip


def _processes(folder: Path, size: Size, *, rounds: int) -> Row:
    store, turn = folder / "store", 24
    replicas = Replicas(folder, make_config(store, batch=SMALL, num_groups=2, hidden=size.hidden, log=turn))
    try:
        config = make_config(store, batch=SMALL, num_groups=2, threads=num_cores(), hidden=size.hidden, log=turn)
        set_up_torch(config)
        engine = Engine(folder / "alternating", config, groups=[0, 1])
        replicas.wait()
        try:
            arms = [Arm("one process", engine.train, turn), Arm("two processes", replicas.train, turn)]
            _warm_up(arms, steps=2)
            timings = interleave(arms, rounds=rounds)
        finally:
            engine.close()
    finally:
        replicas.close()
    row = compare(timings, "one process", "two processes", name="two_processes_100", batch=2 * SMALL, goal=1.15,
                  at_least=True, text=f"two groups in turns in one process of {num_cores()} threads / as two of one "
                  f"thread, batch {SMALL}")  # fmt: skip
    return Row(row.name, row.text, row.ratios, row.goal, row.at_least, examples_per_second=row.examples_per_second)


def _warm_up(arms: Sequence[Arm], *, steps: int) -> None:
    for arm in arms:
        arm.run(steps)
