"""odist plan: its bytes against formulas and against a real run of four processes, its model of a step against simulation."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_config, odist

from odist.bench.rank import COUNTERS, sent
from odist.config.options import options_of
from odist.engine.problem import build_model, build_task, make_clock
from odist.launch.plan import Network, make_plan, modelled_hours, slowest, step_seconds
from odist.mesh import Axis, Mesh
from odist.optim import Optimizer
from odist.strategies.base import Losses, StrategySetup
from odist.strategies.parameter_server import ParameterServer
from odist.strategies.wire import SERVER, WORKER, Link

DENSE = ("model.hidden=[64]", "model.embedding_dim=4", "optim.sparse=false", "train.max_examples=4000")


def test_bytes_and_operations_are_those_of_the_formulas() -> None:
    config = make_config("algorithm=codistill", "num_groups=3", "workers=4", "exchange.interval=1000", *DENSE)
    plan = make_plan(config)
    assert plan.gradient_bytes == 4 * plan.parameters
    assert (plan.peers, plan.processes) == (2, 4)
    assert plan.traffic.all_reduce == pytest.approx(2 * 3 / 4 * plan.gradient_bytes)
    assert plan.teacher_flops == pytest.approx(2 / 3 * plan.flops)
    assert plan.memory == 2 * plan.snapshot_bytes
    interval = plan.interval
    assert interval is not None
    assert plan.traffic.snapshots * 4 * interval == pytest.approx(plan.snapshot_bytes)
    assert plan.traffic.predictions * 4 == pytest.approx(
        2 * plan.examples_per_step * 4
    )  # one number of 4 bytes an example
    assert plan.interval_like_predictions == pytest.approx(plan.snapshot_bytes / (4 * plan.examples_per_step))


def test_an_ensemble_exchanges_nothing_and_a_ring_reads_one_peer() -> None:
    alone = make_plan(make_config("algorithm=ensemble", *DENSE))
    assert (alone.peers, alone.interval, alone.interval_like_all_reduce) == (0, None, None)
    ring = make_plan(make_config("algorithm=codistill", "num_groups=4", "exchange.topology=ring", *DENSE))
    assert ring.peers == 1


def test_rows_of_tables_are_counted_where_their_gradients_are_sparse() -> None:
    plan = make_plan(make_config("algorithm=sync", "workers=2", "model.hidden=[8]", "train.max_examples=4000"))
    assert plan.row_bytes > 0
    assert plan.gradient_bytes < 4 * plan.parameters


def test_the_slowest_of_many_is_as_slow_as_in_a_simulation() -> None:
    assert slowest(1, straggling=0.3) == pytest.approx(1, rel=0.01)
    draw = np.random.default_rng(1)
    times = np.exp(draw.normal(-0.5 * 0.3**2, 0.3, size=(20_000, 64)))
    assert slowest(64, straggling=0.3) == pytest.approx(times.max(axis=1).mean(), rel=0.01)


def test_a_step_grows_with_workers_and_two_groups_wait_for_half_of_them() -> None:
    plan = make_plan(make_config("algorithm=codistill", "num_groups=2", *DENSE))
    network = Network(seconds=1.0, straggling=0.2, bandwidth=1e9, latency=0.001)
    steps = [step_seconds(plan, network, workers=workers) for workers in (1, 8, 64)]
    assert steps == sorted(steps)
    assert steps[0] == pytest.approx(1 + 1 / 3, rel=0.01)  # one peer's forward
    hours = {(one.workers, one.groups): one for one in modelled_hours(plan, network, workers=(2, 64))}
    assert hours[64, 1].seconds_of_step == pytest.approx(
        step_seconds(plan, network, workers=64) - slowest(64, straggling=0.2) / 3
    )
    assert hours[64, 2].seconds_of_step == pytest.approx(step_seconds(plan, network, workers=32))
    assert hours[64, 2].hours == pytest.approx(hours[64, 2].seconds_of_step * plan.num_steps / 3600)


def test_the_command_prints_draws_and_refuses(tmp_path: Path) -> None:
    words = ("algorithm=codistill", "workers=4", "scale=smoke")
    done = odist("plan", *words, "--json", "--output", "hours.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert {one["groups"] for one in content["modelled"]} == {1, 2}
    assert content["longer_steps"]["paper"] == pytest.approx([4.55 / 4.00, 10.0 / 4.55])
    assert (tmp_path / "hours.svg").read_text().startswith("<svg")
    assert "modelled, not measured" in odist("plan", *words, cwd=tmp_path).stdout.lower()
    assert odist("plan", "algorithm=nothing", cwd=tmp_path).returncode == 2
    assert odist("plan", *words, "--output", "hours.png", cwd=tmp_path).returncode == 2


def test_workers_that_agree_rarely_send_and_wait_less() -> None:
    words = ("workers=4", "train.batch=10", "algorithm.average_every=200", *DENSE)
    sync, rare = (make_plan(make_config(f"algorithm={name}", *words)) for name in ("sync", "diloco"))
    assert rare.agreements == pytest.approx(40 / 200, rel=0.05)  # examples of a step, and between agreements
    assert rare.traffic.all_reduce == pytest.approx(rare.agreements * sync.traffic.all_reduce)
    network = Network(seconds=1.0, straggling=0.2, bandwidth=1e6, latency=0.001)
    assert step_seconds(rare, network, workers=64) < step_seconds(sync, network, workers=64) - 0.1
    half = make_plan(make_config("algorithm=post_local", *words))
    assert half.agreements == pytest.approx(0.5 + 0.5 * rare.agreements, rel=0.05)


def test_asynchronous_workers_wait_for_nobody_until_the_server_sends_all_the_time() -> None:
    sync, served = (make_plan(make_config(f"algorithm={name}", "workers=8", *DENSE)) for name in ("sync", "async"))
    fast = Network(seconds=1.0, straggling=0.2, bandwidth=1e9, latency=0.001)
    few, many = (step_seconds(served, fast, workers=workers) for workers in (2, 256))
    assert few == many == pytest.approx(1 + 0.002, rel=1e-3)
    assert step_seconds(sync, fast, workers=256) > 1.5 * many
    slow = Network(seconds=1.0, straggling=0.2, bandwidth=served.pulled, latency=0.001)  # the weights once a second
    assert step_seconds(served, slow, workers=256) == pytest.approx(256)
    assert step_seconds(served, slow, workers=2) == pytest.approx(1 + 2, rel=0.01)  # weights and a gradient


@pytest.mark.parametrize("words", [("optim.sparse=false",), ("train.batch=75",)])
def test_a_server_and_its_workers_send_what_was_planned(words: tuple[str, ...], tmp_path: Path) -> None:
    """Through their real links, here within one process, whose counters the system keeps."""
    if not COUNTERS.is_file():
        pytest.skip("this system does not count what a process writes")
    config = make_config("algorithm=async", "workers=3", "model.hidden=[64]", "model.embedding_dim=16", *words)
    plan = make_plan(config)  # first, since it sets torch up
    task = build_task(config)
    clock, batches = make_clock(config, task), 12
    order = task.evaluation_order("validation", rows=None, batch_size=config.train.batch)

    def end(**options: object) -> tuple[Any, Any]:
        model = build_model(config, task, group=0)
        mesh = Mesh(Axis(0, 1), workers=3)
        setup = StrategySetup(mesh, clock, batch=config.train.batch, **options)  # type: ignore[arg-type]
        strategy = ParameterServer.of(options_of(config, "strategies"), setup)
        strategy.prepare(model, Optimizer(model, config.optim, clock=clock))
        return strategy, model

    def work(worker: int) -> None:
        link = Link(tmp_path / str(worker), rank=WORKER, seconds=60)
        strategy, model = end(links=[link])
        for number in range(batches):
            strategy.pull()
            batch = task.batch(order.ids(number), "validation")  # twelve whole ones
            with strategy.worker(worker):
                logits, _ = task.forward(model, batch, None)
                task.loss(logits, batch, None).total.backward()
            strategy.push(Losses(torch.zeros(()), torch.zeros(())), carry=None)
        strategy.pull()

    def serve(worker: int) -> None:
        link = Link(tmp_path / str(worker), rank=SERVER, seconds=60)
        try:
            server.serve(worker, link, incarnation=0, pid=0)
        except RuntimeError:
            pass  # who has done its batches leaves
        except BaseException as error:
            server.fail(error)

    server, _ = end()
    before = sent()
    threads = [threading.Thread(target=target, args=(worker,)) for target in (work, serve) for worker in range(3)]
    for thread in threads:
        thread.start()
    server.step(batches - 1)
    for thread in threads:
        thread.join()
    assert plan.served == 3 * (plan.traffic.all_reduce + plan.traffic.tables)
    assert (plan.row_bytes > 0) == ("optim.sparse=false" not in words)
    planned = batches * plan.served + 3 * plan.snapshot_bytes  # each has pulled once more
    assert sent() - before == pytest.approx(planned, rel=0.02)


@pytest.mark.slow
def test_a_real_run_of_four_processes_sends_what_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from odist.bench.cluster import Size, measure

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    size = Size(rows=3_000, buckets=26_000, hidden=(256,), processes=(4,), steps=2)
    rows = {row.name: row for row in measure(rounds=1, say=lambda text: None, size=size)}
    plan = make_plan(make_config("algorithm=sync", "workers=4", *DENSE))
    planned = plan.traffic.all_reduce / plan.gradient_bytes
    assert rows["sent_exact_4"].median == pytest.approx(planned, rel=0.02)
    assert rows["sent_fast_4"].median == pytest.approx(planned, rel=0.02)
