"""The processes of a parameter server's workers: started, served by a thread each, started again when they are lost.

A worker keeps nothing that is missed: what it had under way is computed again by the next process in its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from odist.config.options import options_of
from odist.config.read import load
from odist.config.schema import Config
from odist.engine.devices import placed
from odist.engine.problem import build_task, make_clock, set_up_torch
from odist.engine.trainer import Trainer
from odist.errors import GAVE_UP, OdistError, UserError
from odist.launch.session import Session
from odist.mesh import Axis, Mesh
from odist.run.damage import naming
from odist.run.folder import Run
from odist.run.log import Silent, note
from odist.strategies.parameter_server import ParameterServer
from odist.strategies.pulling import Pulling, ServerGone
from odist.strategies.wire import SERVER, WORKER, Link

SECONDS_TO_LEAVE = 5.0


class Crew:
    """The workers of one group's server.

    trainer: of the group; its strategy serves them. Each may be lost `launch.restarts` times and is then given up
    beat: called a few times a second while the server waits
    """

    def __init__(self, run: Run, config: Config, trainer: Trainer, *, beat: Callable[[], object]) -> None:
        assert isinstance(trainer.strategy, ParameterServer)
        self.run, self.config, self.mesh, self.strategy = run, config, trainer.mesh, trainer.strategy
        self.strategy.beat = beat
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["odist.launch.crew"])
        self._over = threading.Event()
        self._lock = threading.Lock()  # processes are started one after the other
        self._processes: dict[int, ForkServerProcess] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="odist-")  # where processes find each other
        self._threads = [
            threading.Thread(target=self._keep, args=(worker,), name=f"worker-{worker}", daemon=True)
            for worker in range(self.mesh.workers)
        ]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.strategy.close()
        with self._lock:
            for process in self._processes.values():
                process.kill()
        for thread in self._threads:
            thread.join(SECONDS_TO_LEAVE)
        self._folder.cleanup()

    def _keep(self, worker: int) -> None:
        """Serve a worker until training is over, by as many processes as it takes."""
        try:
            for incarnation in range(self.config.launch.restarts + 1):
                if self._serve(worker, incarnation):
                    return
            note(
                f"group {self.mesh.group.index} goes on without worker {worker}, which was lost {incarnation + 1} times."
            )
            self.strategy.give_up(worker)
        except BaseException as error:  # shown by the thread that trains
            self.strategy.fail(error)

    def _serve(self, worker: int, incarnation: int) -> bool:
        """Start a process and serve it; False if it was lost. Raises the error with which it gave up."""
        with self._lock:
            if self._over.is_set():
                return True
            path = Path(self._folder.name) / f"{worker}-{incarnation}"
            arguments = (str(self.run.path), self.mesh.group.index, worker, str(path))
            process = self._context.Process(target=work, args=arguments, name=f"odist-worker-{worker}")
            process.start()
            self._processes[worker] = process
        try:
            link = self._connect(process, path)
            self.strategy.serve(worker, link, incarnation=incarnation, pid=process.pid or 0)
            return True
        except RuntimeError as error:
            if self._over.is_set():
                return True
            process.join(SECONDS_TO_LEAVE)
            process.kill()
            process.join()
            self._raise_if_it_gave_up(worker, process)
            note(f"worker {worker} of group {self.mesh.group.index} was lost ({_reason(process, error)}).")
            return False

    def _connect(self, process: ForkServerProcess, path: Path) -> Link:
        """The link to a process that has just started. Raises RuntimeError if it ends before."""
        while not _mark(path).exists():
            if self._over.is_set() or not process.is_alive():
                raise RuntimeError("it ended before it began")
            time.sleep(0.02)
        return Link(path, rank=SERVER, **_link_options(self.config))

    def _raise_if_it_gave_up(self, worker: int, process: ForkServerProcess) -> None:
        if process.exitcode in (UserError.exit_code, GAVE_UP):
            words = log_path(self.run, self.mesh.group.index, worker).read_text(errors="replace").strip().splitlines()
            kind = UserError if process.exitcode == UserError.exit_code else OdistError
            raise kind(words[-1].partition(": ")[2] if words else f"worker {worker} gave up without a message.")


def _reason(process: ForkServerProcess, error: RuntimeError) -> str:
    code = process.exitcode or 0
    if code < 0:
        return f"signal {-code}"
    return f"exit code {code}" if code else str(error).splitlines()[0]


def log_path(run: Run, group: int, worker: int) -> Path:
    """Where a worker's process writes what it has to say."""
    return run.path / "logs" / f"group-{group}-worker-{worker}.log"


def _link_options(config: Config) -> dict[str, Any]:
    return {"seconds": config.launch.patience, "connections": options_of(config, "strategies").connections}


def _mark(rendezvous: Path) -> Path:
    """What a worker's process leaves when it is about to connect."""
    return rendezvous.with_name(f"{rendezvous.name}.ready")


def work(path: str, group: int, worker: int, rendezvous: str) -> None:
    """Be a worker's process: pull, compute, push, until the server has gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    run = Run(Path(path))
    log = os.open(log_path(run, group, worker), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 0
    try:
        with naming(run.path):
            _compute(run, group, worker, Path(rendezvous))
    except OdistError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = GAVE_UP if error.exit_code == 1 else error.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # threads of loaders and of gloo may still wait for what will not come


def _compute(run: Run, group: int, worker: int, rendezvous: Path) -> None:
    config = placed(load(run.path / "config.yaml"), worker)
    set_up_torch(config)
    task = build_task(config)
    mesh = Mesh(
        Axis(group, config.num_groups), workers=config.workers, carried=range(worker, worker + 1), publishes=False
    )
    _mark(rendezvous).touch()
    link = Link(rendezvous, rank=WORKER, **_link_options(config))
    clock = make_clock(config, task)
    with Session(
        run, config, task, clock=clock, meshes=[mesh], progress=Silent(), stop=lambda: False, link=link
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
