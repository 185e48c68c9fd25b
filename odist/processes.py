"""Starts the processes of a run's groups on this machine, watches them and starts crashed groups again.

Groups know nothing of one another but the exchange; each is a few processes that find each other
through a file. What they compute is left to worker.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odist.config import Config
from odist.errors import Diverged, Interrupted, LostWorkers, OdistError, UserError
from odist.log import Progress, make_progress
from odist.run import Run

SECONDS_TO_SAVE = 120.0  # for all processes after a signal, before they are killed
SECONDS_TO_LEAVE = 5.0  # for processes whose group has lost one, which cannot save any more
ENDINGS: dict[int, type[OdistError]] = {error.exit_code: error for error in (UserError, Diverged, LostWorkers)}


@dataclass
class Group:
    """The processes of one group.

    attempt: counts their starts; over: none will be started again; lost: how it ended, if badly and for good
    """

    index: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    attempt: int = 0
    over: bool = False
    lost: OdistError | None = None


def train(run: Run, config: Config, *, stop: Callable[[], bool]) -> None:
    """Train all groups of a run to their end, `launch.processes` processes each.

    Raises Interrupted (all saved), Diverged, LostWorkers (saved), UserError, and OdistError for a group that
    crashed more than `launch.restarts` times. Under freshest timing a group that diverged or crashed for
    good is reported only when the others have come to their end.
    """
    (run.path / "logs").mkdir(exist_ok=True)
    watch = Watch(run, config)
    groups = [Group(index) for index in range(config.num_groups)]
    run.set_status(state="running", started=time.time())
    try:
        for group in groups:
            _start(run, config, group)
        while not all(group.over for group in groups):
            time.sleep(0.1)
            watch.look()
            if stop():
                _end(groups)
                raise Interrupted("saved; the same command continues it.")
            for group in groups:
                _attend(run, config, group)
    except KeyboardInterrupt:
        _end(groups, patience=0.0)  # a second Ctrl-C: at once, unsaved
        raise
    finally:
        _end(groups)
        watch.look()
        watch.close()
        for group in groups:
            for attempt in range(group.attempt):
                _rendezvous(run, group.index, attempt).unlink(missing_ok=True)
    lost = [group.lost for group in groups if group.lost is not None]
    if lost:
        raise type(lost[0])(f"{lost[0]}\nThe other groups are trained and saved.") from lost[0]


def _start(run: Run, config: Config, group: Group) -> None:
    rendezvous = _rendezvous(run, group.index, group.attempt)
    rendezvous.unlink(missing_ok=True)
    group.attempt += 1
    group.processes = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.launch.threads)}
    if any(name == "lo" for _, name in socket.if_nameindex()):
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: needs no name and no network
    for replica in range(config.launch.processes):
        command = [sys.executable, "-m", "odist.worker", str(run.path), str(group.index), str(replica)]
        with open(_log(run, group.index, replica), "ab") as log:
            # A session of its own: Ctrl-C reaches the parent alone, which then tells each process once.
            process = subprocess.Popen(
                [*command, str(rendezvous), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        group.processes.append(process)


def _rendezvous(run: Run, group: int, attempt: int) -> Path:
    return run.path / "logs" / f".group-{group}-{os.getpid()}-{attempt}.rendezvous"


def _log(run: Run, group: int, replica: int) -> Path:
    return run.path / "logs" / f"group-{group}-process-{replica}.log"


def _attend(run: Run, config: Config, group: Group) -> None:
    """React to processes of a group that have ended."""
    if group.over:
        return
    codes = [process.poll() for process in group.processes]
    if all(code == 0 for code in codes):
        group.over = True
    if all(code in (None, 0) for code in codes):
        return
    _end([group])
    loose = config.num_groups > 1 and config.exchange.timing == "freshest"
    error = _ending(run, group, before=codes)
    if error is None and group.attempt <= config.launch.restarts:
        _start(run, config, group)
        return
    if error is None:
        error = _crash(run, group, before=codes)
    if not loose or isinstance(error, Interrupted | UserError):
        raise error
    group.over, group.lost = True, error  # costs its peers a staler teacher and nothing else


def _ending(run: Run, group: Group, *, before: Sequence[int | None]) -> OdistError | None:
    """How a group wanted to end, None for a crash; `before` are the codes when the first bad one was seen.

    Of several processes the one with a meant ending counts: the others crash when it leaves.
    """
    for replica, process in enumerate(group.processes):
        if process.returncode in ENDINGS:
            kind = ENDINGS[process.returncode]
            words = _last_words(run, group.index, replica)
            said = [number for number, line in enumerate(words) if line.startswith(f"{kind.__name__}: ")]
            text = "\n".join(words[said[-1] :]) if said else "\n".join(words[-5:])
            return kind(text.removeprefix(f"{kind.__name__}: "))
    if all(code in (None, 0, Interrupted.exit_code) for code in before):
        return Interrupted("saved; the same command continues it.")
    return None


def _crash(run: Run, group: Group, *, before: Sequence[int | None]) -> OdistError:
    replica = next(number for number, code in enumerate(before) if code not in (None, 0, Interrupted.exit_code))
    shown = [f"    {line}" for line in _last_words(run, group.index, replica)[-5:]]
    times = "once" if group.attempt == 1 else f"{group.attempt} times"
    return OdistError(
        f"group {group.index} crashed {times} (launch.restarts={group.attempt - 1}), the last time with exit code "
        f"{before[replica]}. The same command continues it. {_log(run, group.index, replica)} "
        + "\n".join(["ends with:", *shown] if shown else ["is empty."])
    )


def _last_words(run: Run, group: int, replica: int) -> list[str]:
    return _log(run, group, replica).read_text(encoding="utf-8", errors="replace").strip().splitlines()


def _end(groups: list[Group], *, patience: float = SECONDS_TO_SAVE) -> None:
    """Ask every process that lives to save and end; kill those that do not in time."""
    for group in groups:
        for process in group.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + patience
    for group in groups:
        soon = min(deadline, time.monotonic() + SECONDS_TO_LEAVE)
        for process in group.processes:
            while process.poll() is None:
                crashed = any(
                    other.poll() not in (None, 0, Interrupted.exit_code, *ENDINGS) for other in group.processes
                )
                if time.monotonic() > (soon if crashed else deadline):
                    process.kill()
                    process.wait()
                time.sleep(0.02)


class Watch:
    """Shows what the groups write into metrics.jsonl, once the first of them has told how long the run is."""

    def __init__(self, run: Run, config: Config) -> None:
        self.run = run
        self.config = config
        self.progress: Progress | None = None
        self.path = run.path / "metrics.jsonl"
        self.place = self.path.stat().st_size if self.path.is_file() else 0
        self.steps = {group: max(run.checkpoint_steps(group), default=0) for group in range(config.num_groups)}

    def look(self) -> None:
        """Pass new rows on, and the slowest group's step to status.json."""
        if self.progress is None:
            horizon = self.run.horizon
            if not horizon:
                return
            show, steps = self.config.run.progress, horizon["num_steps"]
            self.progress = make_progress(show=show, num_groups=self.config.num_groups, num_steps=steps)
            self.run.set_status(num_steps=steps)
        rows = self._new_rows()
        for row in rows:
            self.steps[row["group"]] = row["step"]
            self.progress.update(row["group"], row)
        if rows:
            self.run.set_status(step=min(self.steps.values()))

    def _new_rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with open(self.path, "rb") as file:
            file.seek(self.place)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.place += len(whole)
        rows = []
        for line in whole.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # a line of a process killed while writing it
        return rows

    def close(self) -> None:
        """Leave the step from which the run goes on in status.json."""
        saved = (max(self.run.checkpoint_steps(group), default=0) for group in self.steps)
        self.run.set_status(step=min(saved))
        if self.progress is not None:
            self.progress.close()
