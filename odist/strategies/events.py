"""The log of a parameter server: who pulled which version when, and which gradient made which update.

One file a group, RUN/events/group-0.jsonl. Its first row has the run's `workers`, `batch` and `used` (gradients of an update;
null: asynchronous). Rows in the order of what they tell: `pull` (worker, batch, version, incarnation of the process), `update`
(worker, batch, pulled, version that it makes), `drop` (a gradient that came too late), `join` and `lost` (worker, incarnation; pid: its process),
`shard` (a process that keeps a share of the weights, when the server begins).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from odist.errors import UserError


def event_file(run: Path | str, group: int) -> Path:
    """Where the log of a group lies in its run folder."""
    return Path(run) / "events" / f"group-{group}.jsonl"


class EventLog:
    """Appends rows; a continued run begins where its checkpoint was made.

    path: None: nothing is written
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.size = 0  # bytes, up to which the log is that of this run
        self._file: IO[bytes] | None = None

    def write(self, event: str, **fields: Any) -> None:
        if self.path is None:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
            os.truncate(self.path, min(self.size, self.path.stat().st_size))
        row = {"event": event, **fields, "time": round(time.time(), 6)}
        self.size += self._file.write(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log. Raises UserError if there is none or a row cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise UserError(f"{path}: line {number} is damaged, so nobody can follow this log.") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). algorithm.events names a finished run of algorithm=async."
        ) from error
