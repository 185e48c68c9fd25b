"""A run that was cut off anywhere and continued ends in the bits of the unbroken one, for every algorithm."""

from __future__ import annotations

import shutil

import pytest
from conftest import StopAfter, train_whole_and_broken, weight_hashes

from odist.engine.checkpoint import common_step
from odist.errors import Interrupted

# What every run of a task has, and after how many steps it is cut off.
COMMON = {
    "criteo": "train.max_examples=1600 algorithm.burn_in=200 exchange.interval=200 train.checkpoint_every=300",
    "lm": "task.unroll=8 train.max_examples=160 train.log_every=16 train.evaluate_every=0 train.checkpoint_every=24 "
    "algorithm.burn_in=24 exchange.interval=16 optim.clip_norm=null",
    "imagenet": "task.size=8 task.synthetic.rows=80 task.synthetic.validation_rows=30 train.batch=8 train.log_every=16 "
    "train.evaluate_every=0 train.checkpoint_every=0 algorithm.burn_in=24 exchange.interval=16 algorithm.average_every=32",
}
STOPS = {"criteo": (1, 4, 6), "lm": (5, 6), "imagenet": (3, 4)}
WORKERS = {"criteo": "workers=4 train.batch=25", "lm": "workers=2 train.batch=4", "imagenet": "workers=2 train.batch=4"}

# Task, algorithm, strategy, exchange, and what else was typed: a new part is one row.
RUNS = [
    ("criteo", "sync", "allreduce", "memory", "model.dropout=0.1"),
    ("criteo", "sync", "allreduce", "memory", "workers=4 train.batch=25 model.dropout=0.1 optim=adamw optim.lr=0.01"),
    ("criteo", "ensemble", "allreduce", "memory", ""),
    ("criteo", "label_smoothing", "allreduce", "memory", "algorithm.distribution=unigram"),
    (
        "criteo",
        "codistill",
        "allreduce",
        "memory",
        "model.hidden=[64,32] algorithm.teacher_precision=int8 exchange.lookahead=3",
    ),
    (
        "criteo",
        "codistill",
        "allreduce",
        "predictions",
        f"{WORKERS['criteo']} data.partition=identical exchange.period=200 model.dropout=0.1 exchange.interval=100",
    ),
    ("lm", "codistill", "allreduce", "predictions", "data.partition=identical algorithm.top_k=9 model.dropout=0.1"),
    ("criteo", "distill", "allreduce", "memory", "exchange.lookahead=3 algorithm.ramp=500 algorithm.temperature=2"),
    ("criteo", "codistill", "allreduce", "memory", "model.dropout=0.1 data.partition=disjoint"),
    ("criteo", "codistill", "allreduce", "store", "num_groups=3 exchange.lag=1 exchange.lookahead=3"),
    ("criteo", "codistill", "allreduce", "memory", "num_groups=3 exchange.lag=1 exchange.lookahead=3"),
    ("criteo", "codistill", "delayed", "memory", "workers=2 optim=sgd optim.momentum=0.9 optim.lr=0.05"),
    ("criteo", "delayed", "delayed", "memory", WORKERS["criteo"]),
    (
        "criteo",
        "codistill",
        "delayed",
        "memory",
        "workers=4 train.batch=25 algorithm.speeds=heavy_tailed exchange.lag=1",
    ),
    ("lm", "delayed", "delayed", "memory", f"{WORKERS['lm']} algorithm.speeds=heavy_tailed"),
    ("criteo", "local_sgd", "local_sgd", "memory", f"{WORKERS['criteo']} algorithm.average_every=400"),
    ("criteo", "local_sgd", "local_sgd", "memory", f"{WORKERS['criteo']} train.average=swa train.average_from=300"),
    ("criteo", "papa", "allreduce", "memory", "num_groups=3 algorithm.burn_in=100 algorithm.pull=0.3"),
    ("criteo", "post_local", "local_sgd", "memory", f"{WORKERS['criteo']} algorithm.average_every=300 optim=adamw"),
    ("criteo", "diloco", "diloco", "memory", f"{WORKERS['criteo']} algorithm.average_every=500 algorithm.fragments=2"),
    (
        "criteo",
        "codistill",
        "allreduce",
        "memory",
        "train.average=ema exchange.publish=average algorithm.include_self=true exchange.lag=1",
    ),
    ("lm", "sync", "allreduce", "memory", "workers=4 train.batch=2 model.dropout=0.1"),
    ("lm", "codistill", "allreduce", "memory", f"{WORKERS['lm']} data.partition=disjoint exchange.lag=1"),
    ("lm", "codistill", "allreduce", "memory", "data.max_rows=64 train.passes=2.5"),
    (
        "lm",
        "codistill",
        "allreduce",
        "memory",
        "model=transformer model.layers=1 model.width=16 model.heads=2 exchange.lookahead=3 model.dropout=0.1",
    ),
    ("lm", "label_smoothing", "allreduce", "memory", "algorithm.distribution=unigram"),
    ("lm", "distill", "allreduce", "memory", ""),
    ("lm", "delayed", "delayed", "memory", WORKERS["lm"]),
    ("lm", "local_sgd", "local_sgd", "memory", f"{WORKERS['lm']} algorithm.average_every=32"),
    ("lm", "diloco", "diloco", "memory", f"{WORKERS['lm']} algorithm.average_every=32 optim=adamw optim.lr=0.005"),
    ("lm", "papa", "allreduce", "store", "algorithm.pull=0.3"),
    ("imagenet", "papa", "allreduce", "memory", "algorithm.pull=0.3"),
    ("imagenet", "sync", "allreduce", "memory", "workers=4 train.batch=2"),
    (
        "imagenet",
        "sync",
        "allreduce",
        "memory",
        f"{WORKERS['imagenet']} optim=lars optim.clip_norm=1.0 model.channels_last=true",
    ),
    ("imagenet", "codistill", "allreduce", "memory", f"{WORKERS['imagenet']} exchange.lag=1"),
    ("imagenet", "codistill", "allreduce", "memory", "data.partition=identical exchange.lookahead=3 model.dropout=0.2"),
    ("imagenet", "codistill", "allreduce", "memory", "task.synthetic.rows=30 train.passes=2.7"),
    ("imagenet", "codistill", "allreduce", "memory", "model.bf16=true"),
    ("imagenet", "codistill", "allreduce", "memory", "algorithm.teacher_precision=bf16"),
    ("imagenet", "codistill", "allreduce", "predictions", "data.partition=identical"),
    ("imagenet", "label_smoothing", "allreduce", "memory", "algorithm.distribution=unigram"),
    ("imagenet", "distill", "allreduce", "memory", ""),
    ("imagenet", "delayed", "delayed", "memory", WORKERS["imagenet"]),
    ("imagenet", "local_sgd", "local_sgd", "memory", WORKERS["imagenet"]),
    ("imagenet", "diloco", "diloco", "memory", f"{WORKERS['imagenet']} algorithm.sync_share=0.3"),
]


def words(task: str, *typed: str) -> list[str]:
    """What is typed for a run of `task`; the last word for a key counts."""
    every = [f"task={task}", *COMMON[task].split(), *(word for text in typed for word in text.split())]
    return list({word.partition("=")[0]: word for word in every}.values())


MEASURED = ["time", "seconds", "examples_per_second", "teacher_age_seconds", "waited_seconds"]  # by a clock


def rows(run, *, without=()):
    """The log without what a clock measured."""
    frame = run.metrics().drop(columns=[*MEASURED, *without], errors="ignore")
    return frame.sort_values(["group", "step", "kind"], kind="stable").reset_index(drop=True)


@pytest.mark.parametrize(("task", "algorithm", "strategy", "exchange", "typed"), RUNS)
def test_stopped_and_continued_is_unbroken(train, task, algorithm, strategy, exchange, typed):
    parts = [f"algorithm={algorithm}", f"algorithm.strategy={strategy}", f"exchange={exchange}"]
    overrides = words(task, *parts, typed)
    if algorithm == "distill":
        teacher = train(*words(task, "algorithm=ensemble", "seed=9"), name="teacher")
        overrides.append(f"algorithm.teachers=[{teacher.path}]")
    whole, broken = train_whole_and_broken(train, *overrides, stops=STOPS[task])
    restarted = ["swaps"] if exchange == "store" else []  # they say how often the publisher was started
    assert rows(broken, without=restarted).equals(rows(whole, without=restarted))
    for key in ("flops", "distinct_examples", "examples_per_model"):
        assert broken.results[key] == whole.results[key]
    if algorithm == "codistill":
        assert whole.metrics(kind="train")["distill_loss"].notna().any()


def test_killed_between_the_checkpoints_of_two_groups(train, tmp_path):
    """A newer checkpoint of one group alone is not used: the run goes back to the newest that all have."""
    overrides = words("criteo", "algorithm=codistill train.keep_checkpoints=3")
    whole = train(*overrides, name="whole")
    with pytest.raises(Interrupted):
        train(*overrides, name="broken", stop=StopAfter(20))
    broken = tmp_path / "broken" / "checkpoints"
    steps = sorted(folder.name for folder in (broken / "group-1").iterdir())
    shutil.rmtree(broken / "group-1" / steps[-1])
    from odist.run.folder import Run

    assert common_step(Run(tmp_path / "broken"), range(2)) == int(steps[-2].removeprefix("step-"))
    assert weight_hashes(train(*overrides, name="broken")) == weight_hashes(whole)


def test_a_finished_run_is_not_trained_again(train):
    first = train(*words("criteo", "algorithm=sync"), name="run")
    before = first.results
    again = train(*words("criteo", "algorithm=sync"), name="run")
    assert weight_hashes(again) == [group["weight_hash"] for group in before["groups"]]
    assert len(again.metrics()) == len(first.metrics())
