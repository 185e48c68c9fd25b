"""What the other processes of a parameter server do, a worker's and a shard's, and where they meet the server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from odist.config.groups import of_group
from odist.config.options import options_of
from odist.config.read import load
from odist.config.schema import Config
from odist.engine.devices import on_device, placed
from odist.engine.problem import build_model, build_task, make_clock, set_up_torch
from odist.errors import GAVE_UP, OdistError
from odist.launch.session import Session
from odist.mesh import Axis, Mesh
from odist.optim import Optimizer
from odist.run.damage import naming
from odist.run.folder import Run
from odist.run.log import Silent
from odist.strategies.pulling import Pulling, ServerGone
from odist.strategies.shards import Shard
from odist.strategies.share import Share
from odist.strategies.wire import SERVER, WORKER, Link

SECONDS_WITHOUT_LIMIT = 1e8


def log_path(run: Run, group: int, worker: int) -> Path:
    """Where a worker's process writes what it has to say."""
    return run.path / "logs" / f"group-{group}-worker-{worker}.log"


def link_options(config: Config) -> dict[str, Any]:
    """How the two ends of a link are made, which must agree on the number of connections."""
    return {"seconds": config.launch.patience, "connections": options_of(config, "strategies").connections}


def mark(rendezvous: Path) -> Path:
    """What a process leaves when it is about to connect there."""
    return rendezvous.with_name(f"{rendezvous.name}.ready")


def shard_log_path(run: Run, group: int, shard: int) -> Path:
    """Where a shard's process writes what it has to say."""
    return run.path / "logs" / f"group-{group}-shard-{shard}.log"


def worker_path(folder: Path, worker: int, incarnation: int) -> Path:
    """Where a worker's process meets the server."""
    return folder / f"{worker}-{incarnation}"


def shard_path(path: Path, shard: int) -> Path:
    """Where a shard meets the process that meets the server at `path`."""
    return path.with_name(f"{path.name}-shard-{shard}")


def be_worker(path: str, group: int, worker: int, rendezvous: str) -> None:
    """Be a worker's process: pull, compute, push, until the server has gone."""
    run = Run(Path(path))
    _be(run, log_path(run, group, worker), lambda: _compute(run, group, worker, Path(rendezvous)))


def be_shard(path: str, group: int, shard: int, rendezvous: str) -> None:
    """Be a shard's process, until the server has gone."""
    run = Run(Path(path))
    _be(run, shard_log_path(run, group, shard), lambda: _keep_share(run, group, shard, Path(rendezvous)))


def _be(run: Run, log: Path, task: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 0
    try:
        with naming(run.path):
            task()
    except OdistError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = GAVE_UP if error.exit_code == 1 else error.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # threads of loaders and of gloo may still wait for what will not come


def _keep_share(run: Run, group: int, shard: int, rendezvous: Path) -> None:
    config = on_device(load(run.path / "config.yaml"), "cpu")
    set_up_torch(config)
    task = build_task(config)
    model = build_model(config, task, group=group)
    optimizer = Optimizer(model, of_group(config, group).optim, clock=make_clock(config, task))
    share = Share(model, optimizer, shard=shard, num_shards=options_of(config, "strategies").shards)
    folder = rendezvous.parent

    def link_to(path: Path, rank: int) -> Link:
        # the server knows who is lost, so a shard waits however long it takes
        return Link(path, rank=rank, **link_options(config) | {"seconds": SECONDS_WITHOUT_LIMIT})

    mark(rendezvous).touch()
    server = link_to(rendezvous, WORKER)

    def connect(worker: int, incarnation: int) -> Link:
        return link_to(shard_path(worker_path(folder, worker, incarnation), shard), SERVER)

    with contextlib.suppress(RuntimeError):  # the server has gone
        Shard(share, server, connect=connect).run()


def _compute(run: Run, group: int, worker: int, rendezvous: Path) -> None:
    config = placed(load(run.path / "config.yaml"), worker)
    set_up_torch(config)
    task = build_task(config)
    mesh = Mesh(
        Axis(group, config.num_groups), workers=config.workers, carried=range(worker, worker + 1), publishes=False
    )
    mark(rendezvous).touch()
    shards = range(1, options_of(config, "strategies").shards)
    paths = [rendezvous, *(shard_path(rendezvous, shard) for shard in shards)]
    links = [Link(path, rank=WORKER, **link_options(config)) for path in paths]
    clock = make_clock(config, task)
    with Session(
        run, config, task, clock=clock, meshes=[mesh], progress=Silent(), stop=lambda: False, links=links
    ) as session:
        [trainer] = session.trainers
        strategy = trainer.strategy
        assert isinstance(strategy, Pulling)
        trainer.model.train()
        seen = 0  # steps of the group up to which the teacher was asked to refresh
        with contextlib.suppress(ServerGone):
            while True:
                pulled = strategy.pull()
                for step in range(seen, pulled.step):
                    trainer.teacher.refresh(step + 1)
                seen = max(seen, pulled.step)
                if pulled.carry is not None:
                    trainer.carry[worker] = pulled.carry
                for _ in trainer.train_step(pulled.batch, of_group=pulled.step):
                    pass  # groups in processes of their own wait for nobody's turn
                strategy.push(trainer.take_window(), carry=trainer.carry[worker])
