"""What the jobs of a multirun share: a hidden folder with their records, marks of living ones, a file that stops all.

Jobs may run in other processes (joblib) or on other machines (submitit), so they and the command meet only here.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from odist.errors import Interrupted, OdistError
from odist.files import Tail
from odist.launch.stop import Stop
from odist.run.provenance import process_start

STOP_FILE = "stop"
RECORDS = "jobs.jsonl"
ACTIVE = "active-"  # and host and process id
SECONDS_TO_SAVE = 60.0


@dataclass(frozen=True)
class Record:
    """A job that began (code None) or ended (its exit code).

    overrides: what was typed for it; message: why it failed
    """

    overrides: str
    code: int | None
    message: str = ""


class Sweep:
    """The folder of one multirun; made when its first job begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, runs: Path) -> Sweep:
        """A new folder, hidden among the runs of the folder `runs`."""
        return cls((runs / ".sweep" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}").absolute())

    @property
    def stop_file(self) -> Path:
        return self.path / STOP_FILE

    def record(self, overrides: str, *, code: int | None, message: str = "") -> None:
        """Add a record."""
        self.path.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(Record(overrides, code, message)))
        with open(self.path / RECORDS, "a", encoding="utf-8") as file:  # one short write: whole lines
            file.write(line + "\n")

    def records(self) -> list[Record]:
        """All records, in the order of their time."""
        return [Record(**content) for content in Tail(self.path / RECORDS).objects()]

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Let the command see that a job works in this process, which is another one."""
        self.path.mkdir(parents=True, exist_ok=True)
        mark = self.path / f"{ACTIVE}{platform.node()}-{os.getpid()}"
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def _marks(self) -> Iterator[tuple[Path, bool]]:
        """Marks of jobs in other processes, and whether the process may still be alive."""
        for path in self.path.glob(f"{ACTIVE}*"):
            host, _, pid = path.name.removeprefix(ACTIVE).rpartition("-")
            yield path, host != platform.node() or process_start(int(pid)) is not None

    def wait(self) -> None:
        """After an interrupt, wait until the jobs in other living processes have saved."""
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while time.monotonic() < deadline:
            if not any(alive for _, alive in self._marks()):
                return
            time.sleep(0.1)
        print(f"some jobs have not saved within {SECONDS_TO_SAVE:.0f} s and may still run", file=sys.stderr)

    def tidy(self, stop: Stop) -> None:
        """Remove what is not needed after the end; results and logs of sweeper and launcher plug-ins stay."""
        if not self.path.is_dir():
            return
        for name in ("multirun.yaml", RECORDS):
            (self.path / name).unlink(missing_ok=True)
        for mark, alive in list(self._marks()):
            if not alive:
                mark.unlink(missing_ok=True)  # left by a process that was killed
        if not (stop.requested and any(path.name != STOP_FILE for path in self.path.glob("*"))):
            self.stop_file.unlink(missing_ok=True)  # otherwise a launcher's queued jobs still have to see it
        for folder in (self.path, self.path.parent):
            with contextlib.suppress(OSError):  # not empty, or never made
                folder.rmdir()
        if self.path.is_dir():
            print(f"files of the sweeper or launcher: {self.path}")


def list_jobs(records: Sequence[Record]) -> str:
    """Which jobs are done, failed or unfinished after the launcher has lost a process."""
    ended = {record.overrides: record.code for record in records if record.code is not None}
    begun = dict.fromkeys(record.overrides for record in records)
    lines = [
        "a process of the launcher was killed, by hand or because memory ran out, and the launcher ended the others."
    ]
    lines += [f"  done: {overrides}" for overrides in begun if ended.get(overrides) == 0]
    lines += [f"  failed: {overrides}" for overrides in begun if ended.get(overrides)]
    lines += [f"  not finished: {overrides}" for overrides in begun if overrides not in ended]
    return "\n".join([*lines, "The same command finishes these and those that had not begun."])


def raise_failures(records: Sequence[Record], *, stopped: bool) -> None:
    """Raise one error that sums up the jobs that failed or were stopped, if any."""
    bad = [record for record in records if record.code]
    failed = [record for record in bad if record.code != Interrupted.exit_code]
    lines = [f"  {record.overrides}: {record.message}".splitlines()[0] for record in failed]
    listed = f"{len(failed)} of the runs failed:\n" + "\n".join(lines) if failed else ""
    if stopped or len(failed) < len(bad):
        rest = f"{len(bad) - len(failed)} runs were stopped or not started. " if bad else ""
        raise Interrupted(f"{listed}\n{rest}The same command continues.".lstrip())
    if failed:
        codes = {record.code for record in failed}
        end = OdistError(listed)
        end.exit_code = (codes.pop() if len(codes) == 1 else None) or 1
        raise end
