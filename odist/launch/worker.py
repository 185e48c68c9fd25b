"""A process's entry: a run folder in, training of all its groups or of one, results out."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from odist.config.read import load
from odist.config.schema import Config
from odist.data.fitted import keep_fitted
from odist.engine import checkpoint
from odist.engine.devices import backend, placed
from odist.engine.problem import build_task, make_clock, set_up_torch
from odist.engine.trainer import Trainer
from odist.errors import GAVE_UP, Interrupted, OdistError, UserError
from odist.exchange import in_step
from odist.files import try_lock
from odist.launch.results import combine, finish_group, is_done
from odist.launch.session import Session
from odist.mesh import Axis, Mesh
from odist.optim import Clock
from odist.run.damage import naming, writing
from odist.run.folder import FITTED, Run
from odist.run.log import Silent, make_progress, note
from odist.strategies.base import Serving
from odist.tasks.base import Task
from odist.teachers import peers_options

SECONDS_BETWEEN_BEATS = 0.5
SECONDS_TO_LEAVE = 120.0  # for the workers of a killed command to save and end


def main(run: Run, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Train or continue a run to its end, all groups taking turns in this process.

    stop: becomes true when the run should save and end (a signal)
    Raises Interrupted (state saved), Diverged, LostWorkers (state saved), UserError.
    """
    config = load(run.path / "config.yaml")
    config = placed(config)
    set_up_torch(config)
    task = build_task(config)
    clock = make_clock(config, task)
    with held(run, config.trained_groups, stop=stop):
        _train_in_turns(run, config, task, clock=clock, stop=stop)


def _train_in_turns(run: Run, config: Config, task: Task, *, clock: Clock, stop: Callable[[], bool]) -> None:
    start = _common_start(run, config)
    progress = make_progress(show=config.run.progress, num_groups=config.num_groups, num_steps=clock.num_steps)
    meshes = [Mesh(Axis(group, config.num_groups), workers=config.workers) for group in config.trained_groups]
    with Session(run, config, task, clock=clock, meshes=meshes, progress=progress, stop=stop, start=start) as session:
        open_run(run, task, clock, data=config.data.path)
        run.set_status(state="running", step=start, num_steps=clock.num_steps, started=time.time())
        _take_turns(run, config, session.trainers, start=start)
        progress.say(f"trained {clock.num_steps} steps; predicting the validation part")
        for trainer in session.trainers:
            finish_group(trainer, config)
        combine(run)


@contextlib.contextmanager
def held(run: Run, groups: Iterable[int], *, stop: Callable[[], bool]) -> Iterator[None]:
    """Be the only process that writes these groups' files, and repair what a killed one left.

    When the process that started them dies, workers save and leave by themselves; a command that continues the run at
    once waits for that, up to SECONDS_TO_LEAVE. Raises UserError if they stay, Interrupted if `stop` becomes true.
    """
    (run.path / "logs").mkdir(exist_ok=True)
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    with contextlib.ExitStack() as locks:
        for group in groups:
            lock = os.open(run.path / "logs" / f".group-{group}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            locks.callback(os.close, lock)
            while not try_lock(lock):
                if time.monotonic() > deadline:
                    raise UserError(f"{run.path}: another process still trains group {group}. Stop it first.")
                if stop():
                    raise Interrupted("stopped before it began; the same command continues it.")
                time.sleep(0.05)
            checkpoint.recover(run, group)
        yield


def _common_start(run: Run, config: Config) -> int:
    """The step from which groups that take turns go on. Raises UserError if they were saved at different steps."""
    steps = [run.checkpoint_steps(group) for group in config.trained_groups]
    common = checkpoint.newest_sound(run, config.trained_groups, say=note)
    if common is None and all(steps):
        newest = ", ".join(str(group[-1]) for group in steps)
        raise UserError(
            f"{run.path}: its groups were saved after steps {newest}, as processes of their own, and cannot take turns "
            "from there: continue with launch=local."
        )
    for group in config.trained_groups:
        checkpoint.drop_newer(run, group, than=common or 0)
    return common or 0


class Heartbeat:
    """Shows that a group is at work when it asks whether to stop: at every step, and while it waits for its peers."""

    def __init__(self, path: Path, stop: Callable[[], bool]) -> None:
        self._path = path
        self._stop = stop
        self._last = -SECONDS_BETWEEN_BEATS

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_BEATS:
            self._last = now
            with contextlib.suppress(OSError):  # a full disk ends training where something is lost by it
                self._path.touch()
        return self._stop()


def _take_turns(run: Run, config: Config, trainers: Sequence[Trainer], *, start: int) -> None:
    clock = trainers[0].clock
    for steps in itertools.zip_longest(*(trainer.fit(start) for trainer in trainers)):
        done = steps[0]
        if done is not None and done % trainers[0].cadence.log == 0:
            checkpoint.prune(run, config.trained_groups, keep=config.train.keep_checkpoints)
            run.set_status(step=done)
    if any(trainer.stopped for trainer in trainers):
        step = checkpoint.common_step(run, config.trained_groups) or 0
        run.set_status(state="interrupted", step=step)
        raise Interrupted(f"saved after step {step} of {clock.num_steps}; the same command continues it.")
    run.set_status(step=clock.num_steps)
    checkpoint.prune(run, config.trained_groups, keep=config.train.keep_checkpoints)


def work(run: Run, *, group: int, replica: int, rendezvous: Path, stop: Callable[[], bool]) -> None:
    """Train or continue one group as process `replica` of `launch.processes`; `processes.train` starts it.

    rendezvous: file through which the processes of this group find each other
    Raises as `main`; a finished group returns at once.
    """
    config = load(run.path / "config.yaml")
    config = placed(config, group * config.launch.processes + replica)
    set_up_torch(config)
    size, together = config.launch.processes, in_step(config)
    if not together and is_done(run, group, say=note):
        return
    if replica == 0:
        stop = Heartbeat(run.beat_path(group), stop)
    with held(run, [group] if replica == 0 else [], stop=stop):
        rank, everybody = (group * size + replica, config.num_groups * size) if together else (replica, size)
        if everybody > 1:
            store = dist.FileStore(str(rendezvous), everybody)  # type: ignore[attr-defined]
            limit = time_limit(config)
            dist.init_process_group(
                backend(config.launch.device), store=store, rank=rank, world_size=everybody, timeout=limit
            )
        mesh = Mesh(Axis(group, config.num_groups), Axis(replica, size), config.workers)
        if together:
            mesh = lay_out_groups(config)
        if not all_done(run, config, mesh):
            train_group(run, config, mesh, stop=stop)


def lay_out_groups(config: Config) -> Mesh:
    """This process's place among all that torch.distributed knows: group by group, each with its replicas."""
    names, replicas = ("group", "replica"), config.launch.processes
    layout = init_device_mesh("cpu", (len(config.trained_groups), replicas), mesh_dim_names=names)
    process_group = layout.get_group("replica")
    dist.distributed_c10d._set_pg_timeout(time_limit(config), process_group)
    group, replica = layout.get_local_rank("group"), layout.get_local_rank("replica")
    across = None
    if in_step(config):
        every, peers = layout.get_group("group"), peers_options(config)
        assert peers is not None, "groups that meet in every step teach each other"
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=peers.timeout), every)
        across = Mesh(replica=Axis(group, config.num_groups), process_group=every)
    return Mesh(
        Axis(config.trained_groups[group], config.num_groups),
        Axis(replica, replicas),
        config.workers,
        process_group,
        across,
    )


def all_done(run: Run, config: Config, mesh: Mesh) -> bool:
    """Whether a group is trained and has left sound results; of groups that meet in every step, whether all have."""
    groups = [mesh.group.index] if mesh.across is None else config.trained_groups
    return bool(_said_by_writers(mesh, lambda: int(all(is_done(run, group, say=note) for group in groups))))


def _said_by_writers(mesh: Mesh, look: Callable[[], int]) -> int:
    """What the writer of a group finds when it looks, or of groups that meet in every step that of the first, everywhere."""
    looks = mesh.is_writer and (mesh.across is None or mesh.across.is_writer)
    found = [look() if looks else 0]
    if mesh.across is not None:
        found = mesh.across.from_writer(found)
    return mesh.from_writer(found)[0]


def time_limit(config: Config) -> timedelta:
    """How long the processes of a group wait for one of them, which may itself wait for peers or evaluate."""
    peers = peers_options(config)
    return timedelta(seconds=600 + (600 if peers is None else peers.timeout))


def train_group(run: Run, config: Config, mesh: Mesh, *, stop: Callable[[], bool]) -> None:
    """Train or continue one group as the process of `mesh`, which hears the group's other processes."""
    group = mesh.group.index
    task = build_task(config)
    clock = make_clock(config, task)
    if mesh.is_writer and group == config.trained_groups[0]:
        open_run(run, task, clock, data=config.data.path)
    together = [group] if mesh.across is None else config.trained_groups
    start = _said_by_writers(mesh, lambda: checkpoint.newest_sound(run, together, say=note) or 0)
    if mesh.across is not None and mesh.is_writer:
        checkpoint.drop_newer(run, group, than=start)
    with Session(run, config, task, clock=clock, meshes=[mesh], progress=Silent(), stop=stop, start=start) as session:
        [trainer] = session.trainers
        with served(run, config, trainer, beat=stop):
            for done in trainer.fit(start):
                if mesh.is_writer and done % trainer.cadence.log == 0:
                    _prune(run, config, group)
        if trainer.stopped:
            raise Interrupted(f"group {group} stopped and saved.")
        if mesh.is_writer:
            _prune(run, config, group)
        finish_group(trainer, config)


def served(
    run: Run, config: Config, trainer: Trainer, *, beat: Callable[[], object]
) -> contextlib.AbstractContextManager[object]:
    """The processes of a parameter server's workers, while the block runs; nothing for other strategies.

    beat: called a few times a second while the server waits for them
    """
    if not isinstance(trainer.strategy, Serving):
        return contextlib.nullcontext()
    from odist.launch.crew import Crew

    return Crew(run, config, trainer, beat=beat)


def _prune(run: Run, config: Config, group: int) -> None:
    """Delete old checkpoints; groups that wait for each other keep the newest that all have, see restart.py."""
    keep = config.train.keep_checkpoints
    peers = peers_options(config)
    if peers is not None and peers.timing == "lockstep":
        checkpoint.prune(run, config.trained_groups, keep=keep)
    else:
        checkpoint.prune_group(run, group, keep=keep)


def open_run(run: Run, task: Task, clock: Clock, *, data: str | None = None) -> None:
    """Tell readers of the run folder which data the run reads and how long it is.

    data: the prepared store, whose meaning the run keeps
    """
    env = run.env
    known = {"data_fingerprint": env.get("data_fingerprint") or task.fingerprint}  # of prepared data known before
    known["fitted_fingerprint"] = task.fitted_fingerprint  # for users of the run when its data are gone
    if not known.items() <= env.items():
        run.write_json("env.json", {**env, **known})
    if data is not None:
        with writing(run.path / FITTED):
            keep_fitted(Path(data), run.path / FITTED)
    run.write_json("horizon.json", {"num_steps": clock.num_steps, "examples_per_step": clock.examples_per_step})


def entry(arguments: list[str]) -> int:
    """Run one process of one group (`python -m odist.launch.worker RUN GROUP REPLICA RENDEZVOUS PARENT`).

    Returns its exit code.

    SIGTERM and SIGINT save and end; so does the death of PARENT, the id of the process that started this one.
    """
    path, group, replica, rendezvous, parent = arguments
    signalled = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: signalled.append(True))
    try:
        run = Run.open(path)
        with naming(run.path):
            work(
                run,
                group=int(group),
                replica=int(replica),
                rendezvous=Path(rendezvous),
                stop=lambda: bool(signalled) or os.getppid() != int(parent),
            )
    except OdistError as error:
        with contextlib.suppress(OSError):  # the log too lies on a disk that may be full
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return GAVE_UP if error.exit_code == 1 else error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(entry(sys.argv[1:]))
