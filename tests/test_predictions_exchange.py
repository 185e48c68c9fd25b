"""exchange=predictions: groups that show each other what they predict for the same batches."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CONF, make_config, odist, weight_hashes

from odist.claims.planned import planned_runs
from odist.claims.recipe_file import load_recipe
from odist.errors import Interrupted
from odist.exchange.base import Shown
from odist.exchange.predictions import PredictionExchange
from odist.launch.check import validate
from odist.launch.plan import make_plan
from odist.losses import Soft
from odist.run.folder import Run
from odist.tasks.base import Batch
from odist.teachers.kept import Kept
from odist.teachers.live import LivePeers

PAIR = ("algorithm=codistill", "data.partition=identical", "algorithm.burn_in=0")
LIVE = (*PAIR, "exchange=predictions")
CRITEO = ("task=criteo", "train.max_examples=1000", "exchange.interval=50")
LANGUAGE = ("task=lm", "task.unroll=8", "train.max_examples=96", "exchange.interval=8", "train.evaluate_every=0")
TRANSFORMER = (*LANGUAGE, "model=transformer", "model.layers=1", "model.width=32", "model.heads=2")
WORKERS = ("workers=4", "train.batch=12", "train.max_examples=960", "exchange.interval=48")


@pytest.mark.parametrize(
    "words",
    [
        CRITEO,
        (*CRITEO, "num_groups=3", "algorithm.include_self=true", "algorithm.ramp=500"),
        (*CRITEO, *WORKERS, "optim.sparse=false", "groups=[{},{model.hidden:[8]}]"),
        TRANSFORMER,
        (*TRANSFORMER, "algorithm.top_k=7", "algorithm.top_p=0.8", "num_groups=3"),
    ],
)
def test_it_is_the_exchange_of_weights_at_every_step(train: Callable[..., Run], words: tuple[str, ...]) -> None:
    """To the bit, without dropout and batch norm: the same weights predict for the same batch, here in training and there in eval mode."""
    weights = train(*PAIR, *words, "exchange=memory", name="weights")
    live = train(*LIVE, *words, name="live")
    assert weight_hashes(live) == weight_hashes(weights)
    assert live.results["metrics"] == weights.results["metrics"]
    of_teachers = live.results["flops"] / weights.results["flops"]
    assert of_teachers < 0.8  # nobody predicts a second time


def test_the_labels_alone_count_between_two_exchanges(train: Callable[..., Run]) -> None:
    run = train(*LIVE, *CRITEO, "train.log_every=50", "exchange.period=200", "algorithm.burn_in=300", name="live")
    rows = run.metrics(kind="train")
    heard = rows[(rows["group"] == 0) & rows["distill_loss"].notna()]["step"].tolist()
    assert heard == [9, 13, 17]  # completed steps: of the steps 8, 12 and 16
    alone = train("algorithm=ensemble", *CRITEO, "data.partition=identical", name="alone")
    silent = train(*LIVE, *CRITEO, "algorithm.distill_weight=0", "exchange.period=200", name="silent")
    assert weight_hashes(silent) == weight_hashes(alone)


def test_what_was_sent_is_what_was_planned(train: Callable[..., Run]) -> None:
    for words, steps in (
        ((*CRITEO, *WORKERS, "exchange.period=96", "num_groups=3"), 9),  # 2, 4, 6 ... 18
        ((*TRANSFORMER, "algorithm.top_k=7"), 11),
        ((*LANGUAGE,), 11),
    ):
        run = train(*LIVE, *words, name=f"run-{steps}-{len(words)}")
        plan = make_plan(make_config(*LIVE, *words), processes=1)
        assert plan.live
        assert plan.interval is not None
        planned = plan.traffic.predictions * plan.interval * steps
        assert {group["exchange_bytes"] for group in run.results["groups"]} == {round(planned)}
        workers = 4 if WORKERS[0] in words else 1  # with more than one, their gradients too
        assert run.results["bytes_sent"] >= round(planned / workers)
        assert workers > 1 or run.results["bytes_sent"] == round(planned)
        assert (plan.teacher_flops, plan.traffic.snapshots) == (0, 0)


def test_batches_may_be_ragged(tmp_path: Path) -> None:
    """What is exchanged has the size of this step's batch, whatever that of the one before."""
    shown: Shown = {}
    for kept in (None, Kept(top_k=3)):
        ends = [
            LivePeers(
                PredictionExchange(group, num_groups=3, shown=shown),
                peers=[other for other in range(3) if other != group],
                kept=kept,
            )
            for group in range(3)
        ]
        torch.manual_seed(0)
        for step, size in ((1, 8), (2, 8), (3, 5)):
            logits = [torch.randn(size, 6) for _ in ends]
            batch = Batch((logits[0],), torch.zeros(size, dtype=torch.int64), torch.ones(size))
            assert all(end.show(step, 0, own) for end, own in zip(ends, logits, strict=True))
            for group, end in enumerate(ends):
                soft = end.soft_targets(step, 0, batch, logits[group])
                assert isinstance(soft, Soft)
                others = [own if kept is None else kept(own) for peer, own in enumerate(logits) if peer != group]
                assert all(torch.equal(one, other) for one, other in zip(soft.values, others, strict=True))


def test_processes_meet_and_go_on_when_one_is_killed(train: Callable[..., Run], tmp_path: Path) -> None:
    words = (*LIVE, *CRITEO, *WORKERS, "model.dropout=0.1", "train.checkpoint_every=240", "train.keep_checkpoints=2")
    alone = train(*words, name="inline")
    local = (*words, "launch=local", "exchange=predictions", "launch.processes=2")
    folder, killed = tmp_path / "local", []

    def kill_one() -> None:
        """Kill a process of group 1 once it has saved something."""
        while not list(folder.glob("checkpoints/group-1/step-*/*")) and not killed:
            time.sleep(0.01)
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                command = (entry / "cmdline").read_bytes().split(b"\0") if (entry / "cmdline").exists() else []
                if str(folder).encode() in command and command[4:6] == [b"1", b"0"]:
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed.append(entry.name)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        run = train(*local, name="local")
    finally:
        killed.append("")
        killer.join()
    assert len(killed) == 2
    assert weight_hashes(run) == weight_hashes(alone)
    assert [group["exchange_bytes"] for group in run.results["groups"]] == [
        group["exchange_bytes"] for group in alone.results["groups"]
    ]


def test_processes_stop_at_one_step_and_go_on_from_it(train: Callable[..., Run], tmp_path: Path) -> None:
    words = (*LIVE, *CRITEO, "exchange.period=150", "train.max_examples=5000")
    alone = train(*words, name="inline")
    local, folder = (*words, "launch=local", "exchange=predictions"), tmp_path / "local"
    with pytest.raises(Interrupted):
        train(
            *local,
            name="local",
            stop=lambda: (folder / "metrics.jsonl").exists() and len((folder / "metrics.jsonl").read_text()) > 0,
        )
    stopped = Run(folder)
    assert stopped.checkpoint_steps(0) == stopped.checkpoint_steps(1) != []
    assert weight_hashes(train(*local, name="local")) == weight_hashes(alone)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data.partition=disjoint",), "data.partition=disjoint with exchange=predictions"),
        (("data.partition=same",), "data.partition=identical"),
        (("num_groups=1",), "at least 2 groups"),
        (("launch=local", "exchange=predictions", "launch.group=0", "run.id=x"), "launch.group=0"),
        (("exchange.lookahead=2",), "exchange.lookahead=1"),
        (("exchange.lag=1",), "exchange.lag=0"),
        (("exchange.timing=freshest",), "nobody can go on alone"),
        (("exchange.topology=ring",), "exchange.topology=all"),
        (("train.average=ema", "exchange.publish=average"), "exchange.publish=weights"),
        (("algorithm.teacher_precision=int8",), "algorithm.teacher_precision=auto"),
        (("exchange=memory", "exchange.period=4"), "exchange.interval"),
    ],
)
def test_what_cannot_work_is_said(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    typed = list({word.partition("=")[0]: word for word in (*LIVE, *CRITEO, *words)}.values())
    done = odist("train", "scale=smoke", *typed, "run.dir=run", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "run").exists()) == (2, False)
    assert said in done.stderr


@pytest.mark.parametrize("name", ["predictions_exchange", "teacher_precision", "teacher_precision_lm"])
def test_the_recipes_can_be_run(name: str) -> None:
    recipe = load_recipe(CONF.parent / "recipes" / f"{name}.yaml")
    assert sum(claim.primary for claim in recipe.claims) in (1, 2)
    at_small, _ = planned_runs(recipe, "small", variables={"data_path": "data"})
    assert {run.seed for run in at_small} == {1, 2, 3, 4, 5}
    at_smoke, _ = planned_runs(recipe, "smoke", variables={})
    for run in at_smoke:
        if run.seed == 1:
            validate(make_config(*run.overrides))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictions_exchange", "teacher_precision", "teacher_precision_lm"])
def test_every_system_of_the_recipes_trains(train: Callable[..., Run], name: str) -> None:
    recipe = load_recipe(CONF.parent / "recipes" / f"{name}.yaml")
    runs, _ = planned_runs(recipe, "smoke", variables={})
    first = [run for run in runs if run.seed == 1]
    hashes = {run.system: tuple(weight_hashes(train(*run.overrides, name=run.system))) for run in first}
    assert len(set(hashes.values())) == len(recipe.systems)
