"""Starts the processes of a run's groups on this machine, watches them and starts crashed groups again.

Groups know nothing of one another but the exchange; each is a few processes that find each other
through a file. What they compute is left to worker.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odist.config import Config
from odist.errors import Diverged, Interrupted, LostWorkers, OdistError, UserError
from odist.log import Progress, make_progress
from odist.run import Run

SECONDS_TO_SAVE = 120.0  # for all processes after a signal, before they are killed
ENDINGS: dict[int, type[OdistError]] = {error.exit_code: error for error in (UserError, Diverged, LostWorkers)}


@dataclass
class Group:
    """The processes of one group; `attempt` counts their starts."""

    index: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    attempt: int = 0
    diverged: bool = False


def train(run: Run, config: Config, *, stop: Callable[[], bool]) -> None:
    """Train all groups of a run to their end, `launch.processes` processes each.

    Raises Interrupted (all saved), Diverged, LostWorkers (saved), UserError, and OdistError for a group
    that crashed more than `launch.restarts` times.
    """
    (run.path / "logs").mkdir(exist_ok=True)
    watch = Watch(run, config)
    groups = [Group(index) for index in range(config.num_groups)]
    run.set_status(state="running", started=time.time())
    try:
        for group in groups:
            _start(run, config, group)
        while any(_alive(group) for group in groups):
            time.sleep(0.1)
            watch.look()
            if stop():
                _end(groups)
                raise Interrupted("stopped and saved; the same command continues it.")
            for group in groups:
                _attend(run, config, group)
    finally:
        _end(groups)
        watch.look()
        watch.close()
    lost = [group.index for group in groups if group.diverged]
    if lost:
        raise Diverged(f"group {lost[0]} diverged; the others are trained and saved. See {run.path / 'logs'}.")


def _alive(group: Group) -> bool:
    return any(process.poll() is None for process in group.processes)


def _start(run: Run, config: Config, group: Group) -> None:
    rendezvous = run.path / "logs" / f".group-{group.index}-{os.getpid()}-{group.attempt}.rendezvous"
    rendezvous.unlink(missing_ok=True)
    group.attempt += 1
    group.processes = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.launch.threads)}
    for replica in range(config.launch.processes):
        command = [sys.executable, "-m", "odist.worker", str(run.path), str(group.index), str(replica), str(rendezvous)]
        with open(_log(run, group.index, replica), "ab") as log:
            # A session of its own: Ctrl-C reaches the parent alone, which then tells each process once.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        group.processes.append(process)


def _log(run: Run, group: int, replica: int) -> Path:
    return run.path / "logs" / f"group-{group}-process-{replica}.log"


def _attend(run: Run, config: Config, group: Group) -> None:
    """React to processes of a group that ended badly."""
    codes = [process.poll() for process in group.processes]
    bad = [(replica, code) for replica, code in enumerate(codes) if code not in (None, 0)]
    if not bad or group.diverged:
        return
    # Of several the meant ending counts: the others of a group crash when one of them leaves.
    replica, code = next(((r, c) for r, c in bad if c in ENDINGS or c == Interrupted.exit_code), bad[0])
    _end([group], wait=5.0)
    lines = _log(run, group.index, replica).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].split(": ", 1)[-1] if lines else ""
    if code == Diverged.exit_code and config.exchange.timing == "freshest" and config.num_groups > 1:
        group.diverged = True  # costs its peers a staler teacher and nothing else
    elif code in ENDINGS:
        raise ENDINGS[code](last)
    elif code == Interrupted.exit_code:
        raise Interrupted("stopped and saved; the same command continues it.")
    elif group.attempt <= config.launch.restarts:
        _start(run, config, group)
    else:
        shown = "\n".join(f"    {line}" for line in lines[-5:])
        raise OdistError(
            f"group {group.index} crashed {group.attempt} times, the last time with exit code {code} "
            f"({_log(run, group.index, replica)} ends with):\n{shown}"
        )


def _end(groups: list[Group], *, wait: float = SECONDS_TO_SAVE) -> None:
    """Ask every process that lives to save and end; kill those that do not in time."""
    living = [process for group in groups for process in group.processes if process.poll() is None]
    for process in living:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + wait
    for process in living:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Watch:
    """Shows what the groups write into metrics.jsonl, once the first of them has told how long the run is."""

    def __init__(self, run: Run, config: Config) -> None:
        self.run = run
        self.config = config
        self.progress: Progress | None = None
        self.path = run.path / "metrics.jsonl"
        self.place = self.path.stat().st_size if self.path.is_file() else 0
        self.steps = dict.fromkeys(range(config.num_groups), 0)

    def look(self) -> None:
        """Pass new rows on, and the slowest group's step to status.json."""
        if self.progress is None:
            horizon = self.run.horizon
            if not horizon:
                return
            show, steps = self.config.run.progress, horizon["num_steps"]
            self.progress = make_progress(show=show, num_groups=self.config.num_groups, num_steps=steps)
            self.run.set_status(num_steps=steps)
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(self.place)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.place += len(whole)
        rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        for row in rows:
            self.steps[row["group"]] = row["step"]
            self.progress.update(row["group"], row)
        if rows:
            self.run.set_status(step=min(self.steps.values()))

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()
