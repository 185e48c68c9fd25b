"""Reproduce a recipe: train the runs it lacks, record the finished ones, write the report.

Every run is an `odist train` process of its own, so that a crash costs one run, a finished run is
reused and an interrupted one continued. What the numbers mean is left to odist.report.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from odist.errors import Interrupted, OdistError, UserError
from odist.report.recipe import PlannedRun, Recipe, load_recipe
from odist.run import Run, write_atomically

if TYPE_CHECKING:
    from rich.progress import Progress

Echo = Callable[[str], None]
SECONDS_TO_SAVE = 120.0  # how long an interrupted run may take to save before it is killed


@dataclass(frozen=True)
class ReproduceResult:
    """What `reproduce` did.

    folder: of the report; files: those written
    commands: `odist train` command lines of all runs of the recipe
    left_out: variants not run, each with the variable it needs
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def reproduce(
    name_or_path: str | Path,
    *,
    scale: str | None = None,
    output: Path = Path("reports"),
    runs_dir: Path = Path("runs"),
    jobs: int | None = None,
    data_path: Path | None = None,
    dry_run: bool = False,
    only_report: bool = False,
    echo: Echo = print,
) -> ReproduceResult:
    """Train what a recipe lacks and write its report to `output`/NAME.

    name_or_path: a recipe's name or file
    scale: one that the recipe lists, by default the recipe's own; another scale than that writes to
        `output`/NAME-SCALE, so that a quick trial never replaces the report
    runs_dir: run folders go to `runs_dir`/NAME/SCALE/
    jobs: runs trained at a time, by default one a core
    data_path: prepared data for the variants that need it; without it they are left out
    dry_run: print the commands and do nothing
    only_report: make the report from the records that exist, train nothing
    UserError for an unknown recipe or scale, OdistError naming the runs that failed, Interrupted.
    """
    recipe = load_recipe(name_or_path)
    scale = recipe.scale if scale is None else scale
    if data_path is not None and not data_path.is_dir():
        raise UserError(f"{data_path}: no such folder of prepared data. `odist prepare` makes one.")
    variables = {} if data_path is None else {"data_path": str(data_path.resolve())}
    plan, left_out = recipe.plan(scale, variables=variables)
    folder = output / (recipe.name if scale == recipe.scale else f"{recipe.name}-{scale}")
    paths = [runs_dir / recipe.name / scale / run.name for run in plan]
    commands = [_command(run, path) for run, path in zip(plan, paths, strict=True)]
    for variant, variable in left_out.items():
        echo(f"left out: variant {variant}, which needs --{variable.replace('_', '-')}")
    if dry_run:
        for command in commands:
            echo("odist " + " ".join(command[3:]))
        return ReproduceResult(folder, commands=commands, left_out=left_out)
    if not only_report:
        _train(plan, paths=paths, commands=commands, jobs=jobs or os.cpu_count() or 1, echo=echo)
        _record(recipe, plan, paths=paths, folder=folder)
    from odist.report.page import build_report

    files = build_report(folder, name=recipe.name)
    echo(f"report: {folder / recipe.name}.md")
    return ReproduceResult(folder, files=files, commands=commands, left_out=left_out)


def _command(run: PlannedRun, path: Path) -> list[str]:
    threads = [] if any(line.startswith("launch.threads=") for line in run.overrides) else ["launch.threads=1"]
    last = [f"seed={run.seed}", *threads, "run.progress=false", f"run.dir={path}"]
    return [sys.executable, "-m", "odist.cli", "train", *run.overrides, *last]


def _record(recipe: Recipe, plan: Sequence[PlannedRun], *, paths: Sequence[Path], folder: Path) -> None:
    """Write the recipe and its records into the report's folder; records of no planned run are removed.

    Records of variants left out this time stay: they were made where their data lay.
    """
    from odist.report.record import write_records

    folder.mkdir(parents=True, exist_ok=True)
    written = write_records(recipe.name, plan, runs=[Run.open(path) for path in paths], folder=folder / "runs")
    variants = {run.variant for run in plan}
    for path in (folder / "runs").glob("*.json"):
        variant = next((key for key in recipe.variants if key and path.stem.startswith(f"{key}-")), "")
        if path not in written and variant in variants:
            path.unlink()
    write_atomically(folder / "recipe.yaml", recipe.text)


@dataclass
class _Job:
    """A running `odist train`."""

    run: PlannedRun
    path: Path
    process: subprocess.Popen[bytes]
    started: float


def _train(
    plan: Sequence[PlannedRun], *, paths: Sequence[Path], commands: Sequence[list[str]], jobs: int, echo: Echo
) -> None:
    """Run every command, `jobs` at a time; failures are collected and raised when all have ended."""
    waiting = [item for item in zip(plan, paths, commands, strict=True) if not _known_finished(item[1])]
    reused = [item for item in zip(plan, paths, commands, strict=True) if _known_finished(item[1])]
    running: list[_Job] = []
    failed: list[str] = []
    queue = [*reused, *waiting]  # `odist train` checks that a finished run has these settings, and returns at once
    with _stopping(running), _progress(len(queue), echo) as report:
        while queue or running:
            while queue and len(running) < jobs:
                run, path, command = queue.pop(0)
                running.append(_start(run, path, command))
                report.started(running[-1])
            time.sleep(0.1)
            report.steps(running)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                if job.process.returncode != 0:
                    failed.append(_failure(job))
                report.ended(job)
    if failed:
        raise OdistError(f"{len(failed)} of {len(plan)} runs failed; the same command tries them again.\n"
                         + "\n".join(failed))  # fmt: skip


def _known_finished(path: Path) -> bool:
    return (path / "config.yaml").is_file() and Run(path).finished


def _log_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _start(run: PlannedRun, path: Path, command: list[str]) -> _Job:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(_log_path(path), "wb") as log:
        # a session of its own: Ctrl-C reaches this process alone, which then stops each run once
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    return _Job(run, path, process, time.monotonic())


def _failure(job: _Job) -> str:
    lines = _log_path(job.path).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    last = "".join(f"\n    {line}" for line in lines)
    return f"  {job.run.name}: exit code {job.process.returncode}, {_log_path(job.path)} ends with{last}"


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
            try:
                job.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                job.process.kill()
        raise Interrupted("interrupted; the runs are saved and the same command continues them.") from None
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _progress(total: int, echo: Echo) -> Iterator[_Report]:
    """Bars on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield _Report(total, echo, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield _Report(total, echo, bars)


class _Report:
    """Tells the user how far the runs are."""

    def __init__(self, total: int, echo: Echo, bars: Progress | None) -> None:
        self.total, self.echo, self.bars = total, echo, bars
        self.done = 0
        self.tasks: dict[str, Any] = {}
        if bars is not None:
            self.tasks[""] = bars.add_task("runs", total=total)

    def started(self, job: _Job) -> None:
        if self.bars is not None:
            self.tasks[job.run.name] = self.bars.add_task(job.run.name, total=None)

    def steps(self, running: Sequence[_Job]) -> None:
        for job in running if self.bars is not None else ():
            status = Run(job.path).status
            if self.bars is not None and status.get("num_steps"):
                task = self.tasks[job.run.name]
                self.bars.update(task, completed=status.get("step", 0), total=status["num_steps"])

    def ended(self, job: _Job) -> None:
        self.done += 1
        code = job.process.returncode
        how = "finished" if code == 0 else f"failed with exit code {code}"
        if self.bars is not None:
            self.bars.remove_task(self.tasks.pop(job.run.name))
            self.bars.advance(self.tasks[""])
            if code != 0:
                self.bars.console.print(f"{job.run.name} {how}")
        else:
            seconds = time.monotonic() - job.started
            self.echo(f"[{self.done}/{self.total}] {job.run.name} {how} ({seconds:.0f} s)")
