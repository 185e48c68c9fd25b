"""Asynchronous SGD: real servers and workers, their logs followed in one process, and workers of simulated speed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import make_config, train_whole_and_broken, weight_hashes

from odist.errors import Interrupted, UserError
from odist.launch.check import validate
from odist.run.folder import Run
from odist.strategies.events import event_file, read_events
from odist.strategies.schedule import seconds_of, simulated
from odist.strategies.turns import Turns

REAL = (
    "algorithm=async",
    "train.max_examples=4000",
    "train.passes=2",
    "train.evaluate_every=0",
    "exchange.timing=freshest",
)
SIMULATED = ("algorithm=delayed", "train.max_examples=1600", "train.evaluate_every=0")
CLIPPED = ("optim=sgd", "optim.lr=0.03", "optim.momentum=0.9", "optim.clip_norm=0.2")


def events(run: Run, kind: str, *, group: int = 0) -> list[dict]:
    return [event for event in read_events(event_file(run.path, group)) if event["event"] == kind]


def same_curve(one: Run, other: Run) -> bool:
    """Whether two runs have logged the same losses, norms and staleness."""
    columns = ["step", "label_loss", "grad_norm", "lr", "staleness", "staleness_max"]
    return one.metrics(kind="train")[columns].equals(other.metrics(kind="train")[columns])


class Meanwhile(threading.Thread):
    """Does something beside a `with` block, which waits for it."""

    def __enter__(self) -> Meanwhile:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.005)


def signal_all(processes: Iterable[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # ended meanwhile, with the run
            os.kill(process, number)


def rows_so_far(path: Path) -> list[dict]:
    """Whole rows of a log that is still being written."""
    return [json.loads(line) for line in path.read_text().splitlines()[:-1]] if path.is_file() else []


def processes_of(run: Path, group: int) -> dict[int, int]:
    """The newest process of each worker that has joined."""
    rows = rows_so_far(event_file(run, group))
    return {row["worker"]: row["pid"] for row in rows if row["event"] == "join"}


def kill_a_worker(run: Path, *, once: Callable[[], bool], alone: int = 0) -> None:
    """Kill the process of worker 1 of group 0; the others wait until another has taken its place and made `alone` updates."""

    def turns_of_another() -> int:
        return sum(row.get("incarnation") == 1 and row["event"] == "pull" for row in rows_so_far(event_file(run, 0)))

    wait_until(once)
    processes = processes_of(run, 0)
    dead = processes.pop(1)
    signal_all(processes.values(), signal.SIGSTOP)
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: turns_of_another() > alone)
    signal_all(processes.values(), signal.SIGCONT)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_real_run_is_followed_to_the_bit_and_a_killed_worker_hurts_nobody(train, tmp_path, shards):
    """Four processes and those of shards, one worker killed on the way and started again; stopped and continued besides."""
    overrides = (*REAL, "workers=3", "train.batch=25", "train.checkpoint_every=300", *CLIPPED)
    sharded = () if shards == 1 else (f"algorithm.shards={shards}",)
    kill = partial(kill_a_worker, tmp_path / "real", once=lambda: text_of(tmp_path / "real").count('"update"') >= 12)
    with Meanwhile(target=kill), pytest.raises(Interrupted):
        train(*overrides, *sharded, name="real", stop=lambda: '"incarnation": 1' in text_of(tmp_path / "real"))
    real = train(*overrides, *sharded, name="real")
    joins = [(event["worker"], event["incarnation"]) for event in events(real, "join")]
    assert {(0, 0), (1, 0), (1, 1), (2, 0)} <= set(joins)
    assert [event["version"] for event in events(real, "update")] == list(range(1, 160))
    assert {event["shard"] for event in events(real, "shard")} == set(range(1, shards))
    sync = train("algorithm=sync", *REAL[1:4], "train.batch=75", *CLIPPED, name="sync")
    assert real.results["metrics"]["log_loss"] == pytest.approx(sync.results["metrics"]["log_loss"], abs=0.02)
    followed = train("algorithm=delayed", f"algorithm.events={real.path}", *overrides[1:], name="followed")
    assert weight_hashes(followed) == weight_hashes(real)
    assert same_curve(followed, real)


def conduct(run: Path) -> None:
    """Let two groups publish before either goes on; then kill a worker of group 0 that has a teacher, see `kill_a_worker`."""

    def published(group: int) -> bool:
        return any((run / "exchange" / f"group-{group}").glob("*.json"))

    def taught() -> bool:
        rows = rows_so_far(run / "metrics.jsonl")
        return any(row["group"] == 0 and row.get("distill_loss") is not None for row in rows)

    wait_until(lambda: published(0) or published(1))
    first = 0 if published(0) else 1
    early = processes_of(run, first).values()
    signal_all(early, signal.SIGSTOP)
    wait_until(lambda: published(1 - first))
    signal_all(early, signal.SIGCONT)
    kill_a_worker(run, once=taught, alone=6)


def test_asynchronous_groups_teach_each_other_and_a_killed_worker_hurts_neither(train, tmp_path):
    """Two servers in two processes each, with two workers; the worker that takes a killed one's place has a teacher, too."""
    common = (
        "algorithm=codistill",
        "num_groups=2",
        "workers=2",
        "train.batch=25",
        "train.passes=3",
        "train.max_examples=6000",
        "train.evaluate_every=0",
        "algorithm.burn_in=1000",
        "exchange.interval=200",
    )
    with Meanwhile(target=conduct, args=(tmp_path / "real",)):
        real = train(
            *common,
            "algorithm.strategy=parameter_server",
            "algorithm.shards=2",
            "launch=local",
            "exchange.timing=freshest",
            name="real",
        )
    assert {(1, 0), (1, 1)} <= {(event["worker"], event["incarnation"]) for event in events(real, "join")}
    assert [event["incarnation"] for event in events(real, "join", group=1)] == [0, 0]
    for group in (0, 1):
        assert [event["version"] for event in events(real, "update", group=group)] == list(range(1, 241))
    taught = real.metrics(kind="train").set_index(["group", "step"])["distill_loss"].notna()
    for group in (0, 1):  # once it has a teacher it has one in every step, also in those of the new worker alone
        first = taught[group].idxmax()
        assert 20 < first < 100
        assert taught[group].loc[first:].all()
    assert len(set(weight_hashes(real))) == 2
    assert real.results["mean_of_groups"]["log_loss"] < 0.6
    # The turns of each group can be taken again; who taught when is a matter of the clock, so bits are equal until then.
    followed = train(*common, "algorithm.strategy=delayed", f"algorithm.events={real.path}", name="followed")
    rows, again = (run.metrics(kind="train").set_index(["group", "step"]) for run in (real, followed))
    assert rows["staleness"].equals(again["staleness"].reindex(rows.index))
    for group in (0, 1):
        assert rows.loc[group, "label_loss"].loc[:20].equals(again.loc[group, "label_loss"].loc[:20])


def text_of(run: Path) -> str:
    log = event_file(run, 0)
    return log.read_text() if log.is_file() else ""


def test_a_lost_shard_costs_the_steps_since_the_last_checkpoint(train, tmp_path):
    """Its group crashes, goes on from there with new shards, and its log tells the turns that made the weights."""
    overrides = (*REAL, "workers=2", "train.batch=25", "train.checkpoint_every=300", "optim=adagrad")

    def kill() -> None:
        wait_until(lambda: text_of(tmp_path / "real").count('"update"') >= 40)
        [shard] = [row["pid"] for row in rows_so_far(event_file(tmp_path / "real", 0)) if row["event"] == "shard"]
        os.kill(shard, signal.SIGKILL)

    with Meanwhile(target=kill):
        real = train(*overrides, "algorithm.shards=2", name="real")
    log = (real.path / "logs" / "group-0-process-0.log").read_text()
    assert "shard 1 of group 0's server was lost" in log
    assert len({event["pid"] for event in events(real, "shard")}) == 2
    assert [event["version"] for event in events(real, "update")] == list(range(1, 161))
    followed = train("algorithm=delayed", f"algorithm.events={real.path}", *overrides[1:], name="followed")
    assert weight_hashes(followed) == weight_hashes(real)


def test_a_shard_keeps_whole_tensors(train):
    with pytest.raises(
        UserError, match=r"algorithm.shards=99: the model has \d+ tensors.*Type algorithm.shards=\d+ or less"
    ):
        train(*REAL, "workers=2", "algorithm.shards=99", name="many")


def test_an_lstm_carries_on_across_servers_and_followers(train):
    overrides = (
        "task=lm",
        "task.unroll=8",
        "train.max_examples=96",
        "train.evaluate_every=0",
        "workers=2",
        "train.batch=4",
    )
    real = train(*overrides, "algorithm=async", "algorithm.shards=2", "algorithm.max_staleness=1", name="real")
    followed = train(*overrides, "algorithm=delayed", f"algorithm.events={real.path}", name="followed")
    assert weight_hashes(followed) == weight_hashes(real)
    assert same_curve(followed, real)
    assert max(event["version"] - 1 - event["pulled"] for event in events(real, "update")) <= 1


def test_one_worker_and_a_server_without_spares_are_sync_to_the_bit(train):
    small = (
        "task=imagenet",
        "task.size=8",
        "task.synthetic.rows=80",
        "task.synthetic.validation_rows=30",
        "train.evaluate_every=0",
    )
    sync = train(*small, "algorithm=sync", "workers=2", "train.batch=8", name="sync")
    served = train(*small, "algorithm=async", "workers=2", "train.batch=8", "algorithm.backup_workers=0", name="served")
    sharded = train(*small, "algorithm=async", "workers=2", "train.batch=8", "algorithm.backup_workers=0",
                    "algorithm.shards=3", name="sharded")  # fmt: skip
    simulated_sync = train(*small, "algorithm=delayed", "algorithm.speeds=heavy_tailed", "algorithm.backup_workers=0",
                           "workers=2", "train.batch=8", name="simulated")  # fmt: skip
    assert weight_hashes(served) == weight_hashes(sync)
    assert weight_hashes(sharded) == weight_hashes(sync)
    assert weight_hashes(simulated_sync) == weight_hashes(sync)


def test_alone_a_worker_is_sync_to_the_bit(train):
    alone = train(*REAL, "workers=1", "train.max_examples=600", name="alone")
    sync = train("algorithm=sync", *REAL[2:4], "train.max_examples=600", name="sync")
    assert weight_hashes(alone) == weight_hashes(sync)


# Simulated workers


def test_constant_speeds_are_the_delay_of_a_closed_loop(train):
    overrides = (*SIMULATED, "workers=4", "train.batch=25")
    loop = train(*overrides, name="loop")
    constant = train(*overrides, "algorithm.speeds=constant", name="constant")
    assert weight_hashes(constant) == weight_hashes(loop)
    assert constant.metrics(kind="train")["staleness_max"].max() == 3


@pytest.mark.parametrize(
    "options",
    [
        "algorithm.speeds=heavy_tailed",
        "algorithm.speeds=stragglers algorithm.max_staleness=2",
        "algorithm.speeds=heavy_tailed algorithm.backup_workers=1",
        "algorithm.speeds=constant algorithm.worker_ramp=800",
    ],
)
def test_simulated_workers_stopped_and_continued(train, options):
    overrides = (*SIMULATED, "workers=4", "train.batch=25", "train.checkpoint_every=300", "model.dropout=0.1")
    train_whole_and_broken(train, *overrides, *options.split(), stops=(2, 7))


def turns_of(count: int, speeds: str, workers: int, **rules) -> Iterator:
    seconds = seconds_of(speeds, workers=workers, seed=1, group=0)
    sequence = simulated(lambda: Turns(workers, **rules), seconds=seconds)
    return [next(sequence).turn for _ in range(count)]


@pytest.mark.parametrize("bound", [0, 1, 5, 40])
def test_staleness_stays_below_its_bound(bound):
    free = turns_of(2000, "heavy_tailed", 32)
    bounded = turns_of(2000, "heavy_tailed", 32, max_staleness=bound)
    assert max(turn.staleness for turn in free) > 60
    assert max(turn.staleness for turn in bounded) == bound
    assert {turn.worker for turn in bounded} == set(range(32))


def test_stragglers_make_fewer_updates_and_staler_ones():
    turns = turns_of(3200, "stragglers", 16)
    slow = min(range(16), key=lambda worker: sum(turn.worker == worker for turn in turns))
    made = [turn for turn in turns if turn.worker == slow]
    others = [turn for turn in turns if turn.worker != slow]
    assert len(made) == pytest.approx(len(others) / 15 / 4, rel=0.1)
    assert min(turn.staleness for turn in made[1:]) > 2 * max(turn.staleness for turn in others if turn.version > 100)


def test_a_ramp_begins_with_few_workers():
    turns = turns_of(400, "constant", 8, ramp=200)
    assert {turn.worker for turn in turns[:20]} == {0}
    assert {turn.worker for turn in turns[-16:]} == set(range(8))
    assert max(turn.staleness for turn in turns[:20]) == 0


def test_spare_workers_leave_out_the_late():
    turns = turns_of(400, "stragglers", 4, used=3)
    assert all(turn.staleness == 0 for turn in turns)
    assert [turn.version for turn in turns] == [1 + number // 3 for number in range(400)]
    assert len({turn.worker for turn in turns}) == 3  # who is always slow is never heard


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("algorithm=async launch=inline", "Type launch=local, or simulate it in one process"),
        ("algorithm=async workers=2 algorithm.backup_workers=2", "no gradient would be left"),
        ("algorithm=async algorithm.backup_workers=1 algorithm.max_staleness=3", "wait for each other"),
        ("algorithm=delayed algorithm.delay=3 algorithm.speeds=constant", "Give one of them"),
        ("algorithm=delayed algorithm.max_staleness=3", "algorithm.speeds=constant"),
        ("algorithm=delayed algorithm.speeds=quick", "constant"),
        ("algorithm=sync algorithm.max_staleness=3", "algorithm=async"),
        ("algorithm=codistill algorithm.strategy=parameter_server launch=local", "exchange.timing=freshest"),
        (
            "algorithm=codistill algorithm.strategy=delayed algorithm.speeds=constant exchange.lookahead=2",
            "lookahead=1",
        ),
    ],
)
def test_what_cannot_be_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        validate(make_config(*words.split()))


def test_a_log_of_another_run_is_not_followed(train):
    overrides = (*SIMULATED, "train.max_examples=200")
    finished = train("algorithm=sync", "train.max_examples=200", name="sync")
    with pytest.raises(UserError, match="names a finished run of algorithm=async"):
        train(*overrides, f"algorithm.events={finished.path}", name="none")
    log = event_file(finished.path, 0)
    log.parent.mkdir()
    log.write_text('{"event": "start", "workers": 2, "batch": 50, "used": null}\n')
    with pytest.raises(UserError, match=r"that run has workers=2, and this one has 4. Type workers=2"):
        train(*overrides, f"algorithm.events={finished.path}", name="other")
    with pytest.raises(UserError, match=r"has made 0 steps"):
        train(*overrides, "workers=2", f"algorithm.events={finished.path}", name="short")
