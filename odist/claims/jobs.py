"""Planned runs of a recipe, each trained by `odist train` in a process of its own, some at a time.

A crash costs one run, a finished run is reused and an interrupted one continued. The processes are forked from one that has
loaded torch and odist, which takes seconds, as long as many a small run.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

from odist.claims.planned import PlannedRun
from odist.errors import Diverged, Interrupted, OdistError
from odist.run.damage import naming, writing
from odist.run.folder import Run
from odist.run.progress import Bars, duration

Echo = Callable[[str], None]
SECONDS_TO_SAVE = 120.0  # how long an interrupted run may take to save before it is killed
COMMAND_LINE = "odist.cli.main"
PRELOADED = [COMMAND_LINE, "odist.cli.train", "odist.launch.in_place", "hydra", "torch._dynamo"]  # what takes long


def train_command(run: PlannedRun, path: Path) -> list[str]:
    """The `odist train` command line of a planned run in folder `path`; one thread unless its overrides say more."""
    threads = [] if any(line.startswith("launch.threads=") for line in run.overrides) else ["launch.threads=1"]
    last = [f"seed={run.seed}", *threads, "run.progress=false", f"run.dir={path}"]
    return ["odist", "train", *run.overrides, *last]


@dataclass
class _Job:
    """A running `odist train`."""

    run: PlannedRun
    path: Path
    process: ForkServerProcess
    started: float


def train_all(
    plan: Sequence[PlannedRun],
    *,
    paths: Sequence[Path],
    jobs: int,
    echo: Echo,
    may_diverge: bool = False,
    ended: Callable[[Path], None] | None = None,
) -> None:
    """Train every planned run in its folder, `jobs` at a time.

    may_diverge: a run that diverged (its status says so) is not a failure
    ended: called with the folder of every run that ended as it may
    OdistError naming the runs that failed, when all have ended; Interrupted when stopped by a signal.
    """
    queue = [(run, path, train_command(run, path)) for run, path in zip(plan, paths, strict=True)]
    queue.sort(key=lambda item: not _known_finished(item[1]))  # stable: reused ones first, the rest in the plan's order
    running: list[_Job] = []
    failed: list[str] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # `odist train` checks that a finished run has these settings, and returns at once
    num_reused = sum(_known_finished(path) for _, path, _ in queue)
    with _stopping(running), _progress(len(queue), echo, num_reused=num_reused) as report:
        while queue or running:
            while queue and len(running) < jobs:
                run, path, command = queue.pop(0)
                running.append(_start(context, run, path, command))
            time.sleep(0.1)
            report.steps(running)
            for job in [job for job in running if job.process.exitcode is not None]:
                running.remove(job)
                if job.process.exitcode not in ((0, Diverged.exit_code) if may_diverge else (0,)):
                    failed.append(_failure(job))
                elif ended is not None:
                    ended(job.path)
                report.ended(job, running)
    if failed:
        raise OdistError(
            f"{len(failed)} of {len(plan)} runs failed; the same command tries them again.\n" + "\n".join(failed)
        )


def _known_finished(path: Path) -> bool:
    return (path / "config.yaml").is_file() and Run(path).finished


def _log_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _start(context: ForkServerContext, run: PlannedRun, path: Path, command: list[str]) -> _Job:
    with naming(path.parent), writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _log_path(path).write_bytes(b"")
    process = context.Process(target=_train, args=(command, str(_log_path(path))), name=run.name)
    process.start()
    return _Job(run, path, process, time.monotonic())


def _train(command: list[str], log: str) -> None:
    """Be this command, in a process that has just been forked; its output goes to the file `log`."""
    os.setsid()  # a session of its own: Ctrl-C reaches the process that plans, which then stops each run once
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = command
    importlib.import_module(COMMAND_LINE).main()


def _failure(job: _Job) -> str:
    lines = _log_path(job.path).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    last = "".join(f"\n    {line}" for line in lines)
    return f"  {job.run.name}: exit code {job.process.exitcode}, {_log_path(job.path)} ends with{last}"


@contextmanager
def _stopping(running: list[_Job]) -> Iterator[None]:
    """On Ctrl-C or SIGTERM stop every run, let each save, and raise Interrupted."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    except KeyboardInterrupt:
        for job in running:
            job.process.terminate()
        deadline = time.monotonic() + SECONDS_TO_SAVE
        for job in running:
            job.process.join(max(0.0, deadline - time.monotonic()))
            if job.process.exitcode is None:
                job.process.kill()
        raise Interrupted("interrupted; the runs are saved and the same command continues them.") from None
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _progress(total: int, echo: Echo, *, num_reused: int) -> Iterator[_Display]:
    """Bars on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield _Display(total, echo, None, num_reused=num_reused)
        return
    bars = Bars()
    try:
        yield _Display(total, echo, bars, num_reused=num_reused)
    finally:
        bars.close()


class _Display:
    """Tells the user how far the runs are, and how long the rest takes if it is like what was trained until now.

    num_reused: runs that were finished before, come first and take no time
    """

    def __init__(self, total: int, echo: Echo, bars: Bars | None, *, num_reused: int) -> None:
        self.total, self.echo, self.bars, self.num_reused = total, echo, bars, num_reused
        self.done = 0
        self.began = time.monotonic()

    def steps(self, running: Sequence[_Job]) -> None:
        if self.bars is None:
            return
        now = time.monotonic()
        states = {job.run.name: Run(job.path).status for job in running}
        self.bars.show(
            "runs",
            done=self.done,
            total=self.total,
            amount=f"{self.done}/{self.total}",
            left=self._left(states.values()) or f"after {duration(now - self.began)}",
        )
        for job in running:
            status = states[job.run.name]
            steps, num_steps = status.get("step", 0), status.get("num_steps") or None
            amount = f"{steps}/{num_steps}" if num_steps else ""
            after = f"after {duration(now - job.started)}"
            self.bars.show(job.run.name, done=steps, total=num_steps, amount=amount, left=after)

    def _left(self, running: Iterable[Mapping[str, Any]]) -> str:
        """How long the rest takes, empty before that can be told. running: states of the runs that are on their way"""
        begun = sum(state.get("step", 0) / state["num_steps"] for state in running if state.get("num_steps"))
        trained = self.done - self.num_reused + begun
        rest = self.total - self.done - begun
        if trained < 0.05 or rest <= 0:
            return ""
        return f"about {duration((time.monotonic() - self.began) * rest / trained)} left"

    def ended(self, job: _Job, running: Sequence[_Job]) -> None:
        self.done += 1
        code = job.process.exitcode
        endings: dict[int | None, str] = {0: "finished", Diverged.exit_code: "diverged"}
        how = endings.get(code, f"failed with exit code {code}")
        if self.bars is not None:
            self.bars.remove(job.run.name)
            self.steps(())
            if code != 0:
                self.bars.say(f"{job.run.name} {how}")
        else:
            seconds = time.monotonic() - job.started
            left = self._left(Run(other.path).status for other in running)
            self.echo(f"[{self.done}/{self.total}] {job.run.name} {how} ({seconds:.0f} s){', ' if left else ''}{left}")
