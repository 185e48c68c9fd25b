"""The processes of a parameter server: its workers', started, served by a thread each and started again when lost, and its shards'.

A worker keeps nothing that is missed: what it had under way is computed again by the next process in its place. A shard that is
lost takes its share of the weights with it: the group's process crashes, and another continues from the last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from odist.config.schema import Config
from odist.engine.trainer import Trainer
from odist.errors import GAVE_UP, OdistError, UserError
from odist.launch.crew_processes import (
    be_shard,
    be_worker,
    link_options,
    log_path,
    mark,
    shard_log_path,
    shard_path,
    worker_path,
)
from odist.run.folder import Run
from odist.run.log import note
from odist.strategies.parameter_server import ParameterServer
from odist.strategies.wire import SERVER, Link

SECONDS_TO_LEAVE = 5.0


class Crew:
    """The workers of one group's server, and its shards.

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
        self._shards: list[ForkServerProcess] = []
        self._folder = tempfile.TemporaryDirectory(prefix="odist-")  # where processes find each other
        self._threads = [
            threading.Thread(target=self._keep, args=(worker,), name=f"worker-{worker}", daemon=True)
            for worker in range(self.mesh.workers)
        ]

    def __enter__(self) -> Crew:
        try:
            self._start_shards()
        except BaseException:
            self.__exit__()
            raise
        for thread in self._threads:
            thread.start()
        return self

    def _start_shards(self) -> None:
        """Raises OdistError if a process ends before it begins; its log says why."""
        shards = range(1, self.strategy.num_shards)
        paths = [shard_path(Path(self._folder.name) / "server", shard) for shard in shards]
        for shard, path in zip(shards, paths, strict=True):
            arguments = (str(self.run.path), self.mesh.group.index, shard, str(path))
            process = self._context.Process(target=be_shard, args=arguments, name=f"odist-shard-{shard}")
            process.start()
            self._shards.append(process)
        ends = []
        for shard, path in zip(shards, paths, strict=True):
            try:
                process = self._shards[shard - 1]
                ends.append((self._connect(process, path), process.pid or 0))
            except RuntimeError:
                log = shard_log_path(self.run, self.mesh.group.index, shard)
                raise OdistError(
                    f"shard {shard} of group {self.mesh.group.index}'s server did not start: see {log}."
                ) from None
        self.strategy.begin(ends)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.strategy.close()
        with self._lock:
            for process in [*self._processes.values(), *self._shards]:
                process.kill()
        for thread in self._threads:
            if thread.ident is not None:
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
            path = worker_path(Path(self._folder.name), worker, incarnation)
            arguments = (str(self.run.path), self.mesh.group.index, worker, str(path))
            process = self._context.Process(target=be_worker, args=arguments, name=f"odist-worker-{worker}")
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
        while not mark(path).exists():
            if self._over.is_set() or not process.is_alive():
                raise RuntimeError("it ended before it began")
            time.sleep(0.02)
        return Link(path, rank=SERVER, **link_options(self.config))

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
