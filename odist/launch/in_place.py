"""Trains a run in the processes of a job (`launch=env`): every process a share of one group, rank 0 the run folder too."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from odist.config.identity import to_dict
from odist.config.read import load
from odist.config.schema import Config
from odist.engine.devices import placed
from odist.engine.problem import set_up_torch
from odist.errors import CannotWrite, Damaged, Diverged, Interrupted, LostWorkers, OdistError, UserError
from odist.launch import restart
from odist.launch.job import PAUSE, Job
from odist.launch.processes import goes_on_alone, sum_up
from odist.launch.watch import Watch
from odist.launch.worker import all_done, held, train_group
from odist.run.damage import naming
from odist.run.folder import Run
from odist.run.log import note

SECONDS_TO_SEE = 60.0  # the run folder from another machine
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_LEAVE_LAST = 2.0  # an engine ends all when one leaves badly: rank 0, with its words and code, goes first
KINDS = {kind.__name__: kind for kind in (CannotWrite, Damaged, Diverged, LostWorkers, OdistError, UserError)}


def lead(run: Run, config: Config, job: Job, *, stop: Callable[[], bool]) -> None:
    """Train a run as rank 0 of its job; returns when all groups are trained.

    Raises as `processes.train`; an error that another process shows to the user is `said`.
    """
    (run.path / "logs").mkdir(exist_ok=True)
    watch = Watch(run, config)
    restart.mend(run, config, say=watch.say)
    run.set_status(state="running", started=time.time())
    job.give_order({"run": str(run.path), "config": to_dict(config)})
    listener = Listener(job, config, stop, look=watch.look)
    try:
        _share(run, config, job, listener)
        lost = listener.wait_for_groups()
    finally:
        watch.look()
        watch.close()
    if lost:
        raise sum_up(lost, sound=len(config.trained_groups) - len(lost))


def follow(job: Job, *, stop: Callable[[], bool]) -> int:
    """Do what rank 0 says: train a share of a run, or leave. Returns the exit code.

    Raises as `lead`.
    """
    order = job.order(stop=stop)
    if "exit" in order:
        if order["exit"]:
            time.sleep(SECONDS_TO_LEAVE_LAST)
        return int(order["exit"])
    run, config = Run(Path(order["run"])), load(order["config"])
    with naming(run.path):
        _wait_until_seen(run)
        error = _share(run, config, job, Listener(job, config, stop))
    return 0 if error is None else error.exit_code


def _wait_until_seen(run: Run) -> None:
    """Wait for the folder that rank 0 has made, which another machine may see later. Raises UserError if it stays away."""
    deadline = time.monotonic() + SECONDS_TO_SEE
    while not Run.lies_at(run.path):
        if time.monotonic() > deadline:
            raise UserError(
                f"{run.path}: not there on {platform.node()}. All machines of a job need the run folder: choose a run.dir that "
                "they share, or train every group in a job of its own with launch.group=K and exchange.url."
            )
        time.sleep(PAUSE)


def _share(run: Run, config: Config, job: Job, listener: Listener) -> OdistError | None:
    """Train this process's share of a group and tell the others how the group has ended.

    Returns the group's error when the others have gone on without it to their end, and raises any other.
    """
    try:
        config = placed(config, job.ranks.local_rank)
    except UserError as error:
        raise _already_said(error, not job.says_first(str(error))) from None
    set_up_torch(config)
    mesh = job.connect(config)
    group = mesh.group.index
    try:
        try:
            if not all_done(run, config, mesh):
                with held(run, [group] if mesh.is_writer else [], stop=listener):
                    train_group(run, config, mesh, stop=listener)
        except RuntimeError as error:
            if "gloo" not in str(error):  # how torch begins when it does not hear another process any more
                raise
            raise LostWorkers(f"group {group} has lost a process. The same command continues it.") from error
    except Interrupted as error:
        raise listener.cause() or _already_said(error, not job.leads) from error
    except OdistError as error:
        job.report(group, error)
        first = job.says_first(str(error))
        if not goes_on_alone(config) or isinstance(error, UserError | CannotWrite):
            raise _already_said(error, not first) from None
        if first:
            note(str(error))
        listener.wait_for_groups()  # an engine would end all processes if this one left
        return error
    except Exception as error:
        job.report(group, LostWorkers(f"group {group} crashed: {type(error).__name__}: {error}"))
        raise
    if mesh.is_writer:
        job.report(group, None)
    job.disconnect()
    return None


def _already_said(error: OdistError, said: bool) -> OdistError:
    error.said = said
    return error


class Listener:
    """Tells whether to save and end: a signal came, the process that started this one has gone, or in lock-step a group
    has ended badly.

    look: called at the same times, a few times a second
    """

    def __init__(
        self, job: Job, config: Config, stop: Callable[[], bool], *, look: Callable[[], None] = lambda: None
    ) -> None:
        self._job = job
        self._groups = config.trained_groups
        self._alone = goes_on_alone(config)
        self._stop = stop
        self._look = look
        self._parent = os.getppid()
        self._last = time.monotonic()
        self._answer = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LOOKS:
            self._last = now
            self._look()
            self._answer = os.getppid() != self._parent or self.cause() is not None
        return self._answer or self._stop()

    def cause(self) -> OdistError | None:
        """The error of a group, said by its own processes, without which the others cannot go on; None if there is none."""
        lost = {} if self._alone else self._lost()
        return _already_said(next(iter(lost.values())), True) if lost else None

    def wait_for_groups(self) -> dict[int, OdistError]:
        """Return when all groups have ended, with the errors of those that have ended badly.

        Raises that of a group without which the others cannot go on, and Interrupted.
        """
        while any(self._job.ending(group) is None for group in self._groups):
            if self():
                raise self.cause() or _already_said(
                    Interrupted("saved; the same command continues it."), not self._job.leads
                )
            time.sleep(PAUSE)
        cause = self.cause()
        if cause is not None:
            raise cause
        return self._lost()

    def _lost(self) -> dict[int, OdistError]:
        endings = {group: self._job.ending(group) for group in self._groups}
        return {group: KINDS[end["kind"]](end["text"]) for group, end in endings.items() if end}
