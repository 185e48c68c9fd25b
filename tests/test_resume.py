"""A run that was cut off anywhere and continued ends in the bits of the unbroken one, for every algorithm."""

from __future__ import annotations

import shutil

import pytest
from conftest import StopAfter, train_whole_and_broken, weight_hashes

from odist.engine.checkpoint import common_step
from odist.errors import Interrupted

COMMON = ("train.max_examples=1600", "algorithm.burn_in=200", "exchange.interval=200", "train.checkpoint_every=300")
ALGORITHMS = {
    "sync": ["algorithm=sync", "model.dropout=0.1"],
    "sync-workers": ["algorithm=sync", "workers=4", "train.batch=25", "model.dropout=0.1", "optim=adamw", "optim.lr=0.01"],
    "ensemble": ["algorithm=ensemble"],
    "label_smoothing": ["algorithm=label_smoothing", "algorithm.distribution=unigram"],
    "distill": ["algorithm=distill", "exchange.lookahead=3", "algorithm.ramp=500", "algorithm.temperature=2"],
    "codistill": ["algorithm=codistill", "model.dropout=0.1", "data.partition=disjoint"],
    "codistill-3-lag-lookahead": ["algorithm=codistill", "num_groups=3", "exchange.lag=1", "exchange.lookahead=3"],
    "codistill-delayed": ["algorithm=codistill", "algorithm.strategy=delayed", "workers=2", "optim=sgd",
                          "optim.momentum=0.9", "optim.lr=0.05"],
    "delayed": ["algorithm=delayed", "workers=4", "train.batch=25"],
    "local_sgd": ["algorithm=local_sgd", "workers=4", "train.batch=25", "algorithm.average_every=400"],
    "averages": ["algorithm=codistill", "train.average=ema", "exchange.publish=average", "algorithm.include_self=true",
                 "exchange.lag=1"],
    "swa-local_sgd": ["algorithm=local_sgd", "workers=4", "train.batch=25", "train.average=swa", "train.average_from=300"],
}  # fmt: skip


def rows(run):
    """The log without what a clock measured."""
    frame = run.metrics().drop(
        columns=["time", "seconds", "examples_per_second", "teacher_age_seconds"], errors="ignore"
    )
    return frame.sort_values(["group", "step", "kind"], kind="stable").reset_index(drop=True)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_stopped_and_continued_is_unbroken(train, name):
    overrides = [*ALGORITHMS[name], *COMMON]
    if name == "distill":
        teacher = train("algorithm=ensemble", "seed=9", *COMMON, name="teacher")
        overrides.append(f"algorithm.teachers=[{teacher.path}]")
    whole, broken = train_whole_and_broken(train, *overrides, stops=(1, 4, 6))
    assert rows(broken).equals(rows(whole))
    for key in ("flops", "distinct_examples", "examples_per_model"):
        assert broken.results[key] == whole.results[key]


def test_killed_between_the_checkpoints_of_two_groups(train, tmp_path):
    """A newer checkpoint of one group alone is not used: the run goes back to the newest that all have."""
    overrides = ["algorithm=codistill", *COMMON, "train.keep_checkpoints=3"]
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
    first = train("algorithm=sync", *COMMON, name="run")
    before = first.results
    again = train("algorithm=sync", *COMMON, name="run")
    assert weight_hashes(again) == [group["weight_hash"] for group in before["groups"]]
    assert len(again.metrics()) == len(first.metrics())
