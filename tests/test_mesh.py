"""Collectives of a group's processes: the bits of one process, whatever the number of processes.

Real processes on gloo that find each other through a file, forked from a server that has torch loaded.
"""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import make_config
from torch import Tensor, nn

from odist.bench.rank import sent
from odist.config.schema import OptimConfig
from odist.launch.plan import agreements
from odist.mesh import Axis, Mesh
from odist.optim import Clock, Optimizer
from odist.strategies import AllReduceOptions
from odist.strategies.allreduce import AllReduce
from odist.strategies.base import StrategySetup
from odist.strategies.diloco import DiLoCo
from odist.sums import GroupSum
from odist.tasks.base import Batch

WORKERS = 8


def entry(function: Callable[[Mesh], Any], folder: Path, rendezvous: str, replica: int, processes: int) -> None:
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.enable()
    store = dist.FileStore(rendezvous, processes)  # type: ignore[attr-defined]
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=replica, world_size=processes, timeout=limit)
    result = function(Mesh(replica=Axis(replica, processes), workers=WORKERS))
    torch.save(result, folder / f"result-{processes}-{replica}.pt")
    dist.destroy_process_group()


def together(function: Callable[[Mesh], Any], folder: Path, *, processes: int) -> list[Any]:
    """What `function` returns in each of some processes of one group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "odist.strategies.allreduce", "pytest"])  # what takes long
    rendezvous = str(folder / f"rendezvous-{uuid.uuid4()}")  # its own: what an earlier group has left would be believed
    arguments = [(function, folder, rendezvous, replica, processes) for replica in range(processes)]
    started = [context.Process(target=entry, args=own) for own in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=90)
    assert [process.exitcode for process in started] == [0] * processes
    return [torch.load(folder / f"result-{processes}-{i}.pt") for i in range(processes)]


@pytest.fixture(autouse=True)
def checked() -> Iterator[None]:
    """Sparse tensors are checked when made."""
    with torch.sparse.check_sparse_tensor_invariants():
        yield


def tensors(worker: int) -> list[Tensor | None]:
    """A worker's gradients: dense ones of several types and shapes, sparse ones, some absent in some way."""
    made = torch.Generator().manual_seed(worker)

    def dense(*shape: int) -> Tensor:
        # Magnitudes far apart, so that another order of the additions has other bits.
        return torch.randn(shape, generator=made) * 10.0 ** float(torch.randint(-4, 5, (), generator=made))

    rows = torch.randint(0, 6, (worker % 4,), generator=made)  # some workers have none; some rows come twice
    sparse = torch.sparse_coo_tensor(rows[None], dense(len(rows), 3), (6, 3)).coalesce()
    nothing = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 2), (4, 2)).coalesce()
    return [
        dense(5, 3),
        None,  # used by nobody
        sparse,
        dense(4).double() / 3,
        nothing,  # sparse, without a row anywhere
        dense(),
        dense(7),
    ]


def sometimes(worker: int) -> list[Tensor | None]:
    """Parameters that only some workers use: all of the first process's, none of the second's, and so on."""
    dense, _, sparse, *_ = tensors(worker)
    return [dense if worker < 2 else None, sparse if worker in (3, 4) else None, torch.ones(2) * worker]


def plain(tensor: Tensor | None) -> Tensor | None:
    return tensor.to_dense() if tensor is not None and tensor.is_sparse else tensor


LIKE = [torch.zeros(shape) for shape in [(5, 3), (2, 2), (6, 3), (4,), (4, 2), (), (7,)]]
LIKE[3] = LIKE[3].double()


def tree_totals(mesh: Mesh) -> list[list[Tensor | None]]:
    totals = []
    for of_worker in (tensors, sometimes):
        sums = GroupSum(mesh, LIKE[: len(of_worker(0))] if of_worker is tensors else [LIKE[0], LIKE[2], torch.ones(2)])
        for _ in range(2):  # buffers are used again
            for worker in mesh.local_workers:
                sums.add(of_worker(worker))
            total = sums.total()
        totals.append([plain(tensor) for tensor in total])
    return totals


def by_hand(of_worker: Callable[[int], list[Tensor | None]], place: int) -> Tensor | None:
    """((0+1)+(2+3))+((4+5)+(6+7)), densely, where an absent tensor is left out."""
    level = [plain(of_worker(worker)[place]) for worker in range(WORKERS)]
    while len(level) > 1:
        level = [b if a is None else a if b is None else a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_sum_over_workers_has_the_bits_of_the_tree(tmp_path: Path, processes: int) -> None:
    everywhere = together(tree_totals, tmp_path, processes=processes)
    for of_worker, totals in zip((tensors, sometimes), zip(*everywhere, strict=True), strict=True):
        for total in totals:
            assert len(total) == len(of_worker(0))
            for place, tensor in enumerate(total):
                assert same(tensor, by_hand(of_worker, place)), (of_worker.__name__, place)


def test_the_order_of_additions_shows_in_the_bits() -> None:
    """Otherwise the test above would prove nothing."""
    forward = backward = tensors(0)[0]
    for worker in range(1, WORKERS):
        forward = forward + tensors(worker)[0]
    backward = tensors(WORKERS - 1)[0]
    for worker in reversed(range(WORKERS - 1)):
        backward = backward + tensors(worker)[0]
    assert not torch.equal(forward, backward)
    assert not torch.equal(forward, by_hand(tensors, 0))


def collectives(mesh: Mesh) -> dict[str, Any]:
    me = mesh.replica.index
    mesh.stop.wanted = me == 1
    counts = mesh.gather_counts(torch.tensor([me / 3, 5.0], dtype=torch.float64)).tolist()
    state = {"carry": {me: [torch.full((me,), float(me)), None]}, "text": f"process {me}", "number": me / 3}
    return {
        "workers": list(mesh.local_workers),
        "writer": mesh.is_writer,
        "gather": mesh.gather(torch.tensor([me, 10 * me])),
        "ragged": mesh.gather_ragged(torch.full((me, 2), float(me))),
        "ragged empty": mesh.gather_ragged(torch.zeros(0, 3)),
        "states": mesh.gather_state(state),
        "writer's states": mesh.gather_to_writer(state),
        "numbers": mesh.from_writer([7 + me, -(2**62) - me]),
        "no numbers": mesh.from_writer([]),
        "state": mesh.state_from_writer(state if mesh.is_writer else None),
        "counts": counts,
        "stop": mesh.stop.heard,
        "any": [mesh.any(False), mesh.any(me == mesh.replica.size - 1), mesh.any(True)],
    }


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_process_hears_the_same(tmp_path: Path, processes: int) -> None:
    everywhere = together(collectives, tmp_path, processes=processes)
    everybody = range(processes)
    assert [worker for heard in everywhere for worker in heard["workers"]] == list(range(WORKERS))
    assert [heard["writer"] for heard in everywhere] == [True] + [False] * (processes - 1)
    for heard in everywhere:
        assert [tensor.tolist() for tensor in heard["gather"]] == [[i, 10 * i] for i in everybody]
        assert [tensor.tolist() for tensor in heard["ragged"]] == [[[float(i)] * 2] * i for i in everybody]
        assert [tuple(tensor.shape) for tensor in heard["ragged empty"]] == [(0, 3)] * processes
        assert len(heard["writer's states"]) == (processes if heard["writer"] else 0)
        states = [*enumerate(heard["states"]), *enumerate(heard["writer's states"]), (0, heard["state"])]
        for who, state in states:
            assert (state["text"], state["number"]) == (f"process {who}", who / 3)
            carry, nothing = state["carry"][who]
            assert (carry.tolist(), nothing) == ([float(who)] * who, None)
        assert heard["numbers"] == [7, -(2**62)]
        assert heard["no numbers"] == []
        assert heard["counts"] == [number for i in everybody for number in (i / 3, 5.0)]
        assert heard["stop"] is (None if processes == 1 else True)
        assert heard["any"] == [False, True, True]


class Normed(nn.Module):
    """A model with running statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6, momentum=0.1)
        self.last = nn.Linear(6, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(rows)))).squeeze(1)


def normed_batch(step: int, worker: int) -> Batch:
    made = torch.Generator().manual_seed(1000 * step + worker)
    size = 5 + worker % 3  # ragged
    rows = torch.randn((size, 4), generator=made) * (1 + worker) + step
    return Batch((rows,), (rows.sum(dim=1) > 0).float(), torch.ones(size))


STEPS = 3


def train_normed(mesh: Mesh) -> dict[str, Any]:
    """Steps of a model with BatchNorm as the trainer makes them, through the public interface of a strategy."""
    return train_steps(mesh, Normed, normed_batch, AllReduceOptions(), OptimConfig(name="sgd", lr=0.1, momentum=0.9))


def train_steps(
    mesh: Mesh,
    build: Callable[[], nn.Module],
    batch_of: Callable[[int, int], Batch],
    options: AllReduceOptions,
    optim: OptimConfig,
) -> dict[str, Any]:
    torch.manual_seed(0)
    model, clock = build(), Clock(WORKERS, STEPS)
    optimizer = Optimizer(model, optim, clock=clock)
    strategy = AllReduce.of(options, StrategySetup(mesh, clock))
    strategy.prepare(model, optimizer)
    model.train()
    history = []
    for step in range(STEPS):
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        batches = [batch_of(step, worker) for worker in mesh.local_workers]
        for worker, batch, count in zip(mesh.local_workers, batches, strategy.count(batches), strict=True):
            with strategy.worker(worker) as spread:
                logits = (model if spread is None else spread)(batch.inputs[0])
                (F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="sum") / count).backward()
        strategy.step(step)
        history.append({"weights": weights, "buffers": {n: b.clone() for n, b in model.named_buffers()}})
    return {"history": history, "final": dict(model.state_dict())}


def test_batchnorm_keeps_the_mean_of_the_workers_statistics(tmp_path: Path) -> None:
    """Source: Goyal et al. 2017, section 3: statistics per worker. The oracle is numpy in float64."""
    runs = {processes: together(train_normed, tmp_path, processes=processes) for processes in (1, 2, 4)}
    mean, variance = np.zeros(6), np.ones(6)
    for step, then in enumerate(runs[1][0]["history"]):
        weight, bias = (then["weights"][f"first.{name}"].double().numpy() for name in ("weight", "bias"))
        means, variances = [], []
        for worker in range(WORKERS):
            hidden = normed_batch(step, worker).inputs[0].double().numpy() @ weight.T + bias
            means.append(0.9 * mean + 0.1 * hidden.mean(axis=0))
            variances.append(0.9 * variance + 0.1 * hidden.var(axis=0, ddof=1))
        mean, variance = np.mean(means, axis=0), np.mean(variances, axis=0)
        assert then["buffers"]["norm.running_mean"].numpy() == pytest.approx(mean, rel=1e-5, abs=1e-6)
        assert then["buffers"]["norm.running_var"].numpy() == pytest.approx(variance, rel=1e-5)
        assert then["buffers"]["norm.num_batches_tracked"].item() == step + 1
    for several in runs.values():
        for one in several:
            assert one["final"].keys() == runs[1][0]["final"].keys()
            assert all(torch.equal(tensor, runs[1][0]["final"][name]) for name, tensor in one["final"].items())


class Tables(nn.Module):
    """A model whose embedding table gets sparse gradients, with running statistics behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 4)
        self.rest = Normed()

    def forward(self, ids: Tensor) -> Tensor:
        return self.rest(self.table(ids).sum(dim=1))


def table_batch(step: int, worker: int) -> Batch:
    ids = torch.randint(0, 40, (6 + worker % 3, 3), generator=torch.Generator().manual_seed(100 * step + worker))
    return Batch((ids,), (ids.sum(dim=1) % 2).float(), torch.ones(len(ids)))


PLAIN = OptimConfig(name="sgd", lr=0.1)


def train_exactly(mesh: Mesh) -> dict[str, Any]:
    return train_steps(mesh, Tables, table_batch, AllReduceOptions(), PLAIN)


def train_fast(mesh: Mesh) -> dict[str, Any]:
    return train_steps(mesh, Tables, table_batch, AllReduceOptions(reduce="fast"), PLAIN)


def train_compressed(mesh: Mesh) -> dict[str, Any]:
    return train_steps(mesh, Tables, table_batch, AllReduceOptions(reduce="fast", compress="bf16"), PLAIN)


def test_tables_have_the_bits_of_one_process_and_fast_sums_differ_by_rounding(tmp_path: Path) -> None:
    (alone,) = together(train_exactly, tmp_path, processes=1)
    first = alone["history"][0]["weights"]
    for function, tolerance in ((train_exactly, 0.0), (train_fast, 1e-5), (train_compressed, 2e-2)):
        both = together(function, tmp_path, processes=2)
        for name, expected in alone["final"].items():
            found = [one["final"][name] for one in both]
            assert torch.equal(*found), (function.__name__, name)
            if expected.is_floating_point():
                torch.testing.assert_close(found[0], expected, rtol=0, atol=tolerance)
        assert not torch.equal(both[0]["final"]["table.weight"], first["table.weight"])  # it was trained


def bytes_of_diloco(mesh: Mesh) -> int:
    """What a process sends in ten steps of which every fifth agrees."""
    model = nn.Linear(500, 400)
    strategy = DiLoCo(mesh, average_every=5, num_steps=10)
    strategy.prepare(model, Optimizer(model, OptimConfig(name="sgd", lr=0.1), clock=Clock(WORKERS, 10)))
    dist.barrier()
    before = sent()
    for step in range(10):
        for worker in mesh.local_workers:
            with strategy.worker(worker):
                model(torch.ones(1, 500)).sum().backward()
        strategy.step(step)
    return sent() - before


def test_local_workers_send_what_the_plan_says(tmp_path: Path) -> None:
    config = make_config("algorithm=diloco", f"workers={WORKERS}", "train.batch=1", "algorithm.average_every=40")
    synchronous, averages = agreements(config, Clock(WORKERS, 10))
    assert (synchronous, averages) == (0, 0.2)
    planned = 10 * averages * 2 * 3 / 4 * 4 * (500 * 400 + 400)
    assert together(bytes_of_diloco, tmp_path, processes=4) == pytest.approx([planned] * 4, rel=0.02)
