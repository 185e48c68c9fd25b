"""What a command sees of its groups' processes: the rows and notes that they write, and whether they are alive."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from odist.config.schema import Config
from odist.errors import CannotWrite
from odist.files import Tail
from odist.run.folder import Run, is_row
from odist.run.log import NOTE, Progress, make_progress

SHARE_OF_PATIENCE = 0.1  # after which the user hears of a silent group ...
SECONDS_OF_SILENCE = 2.5  # ... and never earlier
AT_WORK = 0.05  # processor seconds a second that a process at work takes at least
TICKS = 100.0  # of a processor's clock in a second, as Linux counts in /proc
BEATS = 10  # a group that computes counts as silent after this many times its longest pause between beats, or patience


class Watch:
    """Shows what the groups write into metrics.jsonl, once the first of them has told how long the run is.

    steps: the last step of each group that was seen
    """

    def __init__(self, run: Run, config: Config) -> None:
        self.run = run
        self.config = config
        self.progress: Progress | None = None
        self.rows = Tail.from_end(run.path / "metrics.jsonl")
        self.logs: dict[Path, Tail] = {path: Tail.from_end(path) for path in self._log_paths()}
        self.steps = {group: max(run.checkpoint_steps(group), default=0) for group in config.trained_groups}

    def _log_paths(self) -> list[Path]:
        groups, replicas = self.config.trained_groups, range(self.config.launch.processes)
        return [self.run.path / "logs" / f"group-{g}-process-{r}.log" for g in groups for r in replicas]

    def look(self) -> None:
        """Pass new rows and notes on, and the slowest group's step to status.json."""
        for log in self.logs.values():
            for line in log.lines():
                if line.startswith(NOTE.encode()):
                    self.say(line.decode(errors="replace").removeprefix(NOTE))
        if self.progress is None:
            horizon = self.run.horizon
            if not horizon:
                return
            show, steps = self.config.run.progress, horizon["num_steps"]
            self.progress = make_progress(show=show, num_groups=self.config.num_groups, num_steps=steps)
            self.run.set_status(num_steps=steps)
        rows = [row for row in self.rows.objects() if is_row(row)]
        for row in rows:
            if row["group"] in self.steps:
                self.steps[row["group"]] = row["step"]
                self.progress.update(row["group"], row)
        if rows:
            self.run.set_status(step=min(self.steps.values()))

    def say(self, text: str) -> None:
        """Tell the user something, whether or not rows are shown."""
        if self.progress is not None and self.config.run.progress:
            self.progress.say(f"{NOTE}{text}")
        else:
            print(f"{NOTE}{text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the step from which the run goes on in status.json."""
        saved = (max(self.run.checkpoint_steps(group), default=0) for group in self.steps)
        if self.progress is not None:
            self.progress.close()
        with contextlib.suppress(CannotWrite):
            self.run.set_status(step=min(saved))


class Pulse:
    """Tells from outside whether the processes of a group are at work.

    Signs of life are beats (the group touches a file at every step, and while it waits for its peers) and, where the system
    reports it, processor time, because evaluations and predictions have no steps.

    beat: the file; patience: seconds without any sign after which the group counts as lost. A group that takes processor
    time but makes no step is given ten times as long, or ten times its longest step.
    """

    def __init__(self, beat: Path, *, patience: float) -> None:
        self.beat = beat
        self.patience = patience
        self.stopped: list[int] = []  # ids of the processes that somebody has stopped
        now = time.monotonic()
        self._now = now
        self._beaten = self._active = self._sampled = now  # last beat, last work, last sample of the processor
        self._longest = 0.0  # between two beats
        self._mark = self._time_of_beat()
        self._used: float | None = None
        self._told = False

    def _time_of_beat(self) -> int:
        try:
            return self.beat.stat().st_mtime_ns
        except OSError:
            return 0

    def feel(self, processes: Sequence[int]) -> None:
        """Look for signs of life; processes: ids of those that have not ended."""
        self._now = time.monotonic()
        mark = self._time_of_beat()
        if mark != self._mark:
            self._longest = max(self._longest, self._now - self._beaten)
            self._mark, self._beaten = mark, self._now
        elapsed = self._now - self._sampled
        if elapsed >= min(1.0, self.patience / 20):
            found = [_stat(pid) for pid in processes]
            known = [seconds for seconds, _ in filter(None, found)]
            used = sum(known) if len(known) == len(found) else None
            if used is None or self._used is None or used - self._used >= AT_WORK * elapsed or used < self._used:
                self._active = self._now
            self.stopped = [
                pid for pid, stat in zip(processes, found, strict=True) if stat is not None and stat[1] in "Tt"
            ]
            self._used, self._sampled = used, self._now

    @property
    def silent(self) -> float:
        """Seconds without any sign of life."""
        return self._now - max(self._beaten, self._active)

    @property
    def gone(self) -> bool:
        """Whether the group counts as lost."""
        without_steps = self._now - self._beaten
        return self.silent > self.patience or without_steps > BEATS * max(self.patience, self._longest)

    def news(self) -> list[str]:
        """What to tell the user now: that the group has fallen silent, or that it goes on; usually nothing."""
        usual = min(BEATS * self._longest, self.patience / 2)
        if not self._told and self.silent > max(SHARE_OF_PATIENCE * self.patience, usual, SECONDS_OF_SILENCE):
            self._told = True
            wake = "".join(f" Process {pid} is stopped: `kill -CONT {pid}` lets it go on." for pid in self.stopped)
            left = f"after {self.patience:g} s (launch.patience) it counts as lost"
            return [f"no sign of life for {self.silent:.0f} s; {left}.{wake}"]
        if self._told and self.silent < SECONDS_OF_SILENCE:
            self._told = False
            return ["goes on."]
        return []

    def describe(self) -> str:
        """How the group fell silent, in words."""
        if self.silent > self.patience:
            stopped = f" (process {self.stopped[0]} was stopped)" if self.stopped else ""
            return f"showed no sign of life for {self.silent:.0f} s{stopped}"
        return f"made no step for {self._now - self._beaten:.0f} s"


def _stat(pid: int) -> tuple[float, str] | None:
    """Processor seconds that a process has taken and its state; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS, fields[0]
    except (OSError, ValueError, IndexError):
        return None
