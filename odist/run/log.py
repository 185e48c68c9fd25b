"""What a run says while it trains: rows in metrics.jsonl, and progress on the terminal.

Rows are for machines and always written; progress is a bar per group on a terminal and plain lines
elsewhere. Every row has kind (train, evaluate), group, step (completed), examples, seconds (of training) and time (since the
epoch). Of teachers that are other groups a `train` row says, where there is something to say:

    teacher_age_steps, teacher_age_seconds    of the oldest snapshot in use; null: none yet
    swaps                 [step, group, incarnation, snapshot's step, sha256] of every snapshot taken since the last row
    teacher_stale         groups that have sent nothing new for many refreshes: gone, or far slower (freshest)
    teacher_ignored       predictions left out so far because they were not finite (freshest)
    waited_seconds        since the last row, for peers and for the store (lock-step)
    exchange_rejected     entries of the store that are not used; exchange_rejections: the same by kind (not_a_manifest,
                          other_run, other_model, damaged, not_finite, unreadable); exchange_reason: the last one in words
    exchange_problems     looks into the store that failed so far
    publish_failed        own snapshots that could not be written so far
    publish_superseded    incarnation of a later start of this group, whose snapshots count in place of this process's
    copy_failed           checkpoints that could not be copied to train.checkpoint_copy so far; copy_reason: why the last one
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any, Protocol

from odist.files import finite
from odist.run.damage import writing
from odist.run.folder import Run
from odist.run.progress import Bars, Pace, duration

NOTE = "note: "  # begins a line for the user, also in the log of a group's process
PLAIN_SECONDS = 10.0  # between two plain lines of a group
LEAST_WORTH_SAYING = 0.1  # seconds waited, or snapshots, that a person is told of


def note(text: str) -> None:
    """Tell the user something that is not an error; what the process of a group says, its command passes on."""
    print(f"{NOTE}{text}", file=sys.stderr, flush=True)


class Progress(Protocol):
    """Shows the state of each group."""

    def update(self, group: int, row: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends rows to metrics.jsonl and passes them on to the progress display.

    run: where the file lies, shared by the groups' processes, each row one write; progress: may show nothing
    """

    def __init__(self, run: Run, *, progress: Progress) -> None:
        self.path = run.path / "metrics.jsonl"
        self.progress = progress
        with writing(self.path):
            self._file: IO[bytes] = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
            if _torn(self.path):  # half a line of a killed process: end it, so that it spoils no other
                self._file.write(b"\n")

    def write(self, kind: str, *, group: int, **values: Any) -> None:
        """Write one row; floats that are not finite become null. Raises CannotWrite if the disk is full."""
        row = {"kind": kind, "group": group, **values, "time": round(time.time(), 3)}
        clean = {key: finite(value) for key, value in row.items()}
        line = json.dumps(clean).encode() + b"\n"
        with writing(self.path):
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.progress.update(group, clean)

    def close(self) -> None:
        self._file.close()
        self.progress.close()


def _torn(path: Path) -> bool:
    """Whether the file ends inside a line."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


class Silent:
    """Shows nothing."""

    def update(self, group: int, row: dict[str, Any]) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def describe(row: dict[str, Any]) -> str:
    """A row's numbers in a few words."""
    if row["kind"] == "evaluate":
        shown = [
            f"{key} {row[key]:.4f}" for key in ("log_loss", "cross_entropy", "auc", "top1") if row.get(key) is not None
        ]
        return "validation " + ", ".join(shown)
    words = [f"loss {row['label_loss']:.4f}" if row.get("label_loss") is not None else "loss -"]
    if row.get("distill_loss") is not None:
        words.append(f"distillation {row['distill_loss']:.4f}")
    if row.get("teacher_age_steps") is not None:
        words.append(f"teacher {row['teacher_age_steps']} steps old")
    elif "teacher_age_steps" in row:
        reason = row.get("exchange_reason")
        words.append(f"no teacher yet ({reason})" if reason else "no teacher yet")
    if row.get("teacher_stale"):
        words.append(f"nothing new from group {', '.join(map(str, row['teacher_stale']))}")
    words += _losses(row)
    if row.get("examples_per_second"):
        words.append(f"{row['examples_per_second']:,.0f} examples/s")
    return ", ".join(words)


def _losses(row: dict[str, Any]) -> list[str]:
    """What the exchange has cost, in words: time waited since the last row, snapshots refused or not written so far."""
    said = [
        ("exchange_rejected", f"{row.get('exchange_rejected')} rejected"),
        ("publish_failed", f"{row.get('publish_failed')} not published"),
        ("waited_seconds", f"waited {row.get('waited_seconds') or 0:.1f} s"),
    ]
    return [words for name, words in said if (row.get(name) or 0) >= LEAST_WORTH_SAYING]


def describe_briefly(row: dict[str, Any], *, validation: float | None, room: int) -> str:
    """A training row's numbers and the last validation loss in at most `room` characters.

    What matters least is left out first.
    """
    label, distillation, age = row.get("label_loss"), row.get("distill_loss"), row.get("teacher_age_steps")
    speed = row.get("examples_per_second")
    words = [  # importance, words
        (0, f"loss {label:.4f}" if label is not None else "loss -"),
        (1, f"validation loss {validation:.4f}" if validation is not None else ""),
        (4, f"distillation {distillation:.4f}" if distillation is not None else ""),
        (2, f"teacher {age} steps old" if age is not None else "no teacher" if "teacher_age_steps" in row else ""),
        (3, f"{_thousands(speed)} examples/s" if speed else ""),
        *((5, words) for words in _losses(row)),
    ]
    kept = [word for word in words if word[1]]
    while len(kept) > 1 and len("  ".join(text for _, text in kept)) > room:
        kept.remove(max(kept))
    return "  ".join(text for _, text in kept)


def _thousands(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


class PlainProgress:
    """One line now and then, for logs and pipes."""

    def __init__(self, *, num_groups: int, num_steps: int) -> None:
        self.num_steps = num_steps
        self._last = dict.fromkeys(range(num_groups), 0.0)
        self._paces = [Pace(num_steps) for _ in range(num_groups)]

    def update(self, group: int, row: dict[str, Any]) -> None:
        left = self._paces[group].left(row["step"], now=row["time"])
        now = time.monotonic()
        if row["kind"] == "evaluate" or now - self._last[group] >= PLAIN_SECONDS:
            self._last[group] = now
            ending = f", {duration(left)} left" if left is not None and row["step"] < self.num_steps else ""
            self.say(f"group {group} step {row['step']}/{self.num_steps}: {describe(row)}{ending}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class LiveProgress:
    """Two lines per group: bar, steps and time left; then loss, last validation loss, age of the teacher, speed."""

    def __init__(self, *, num_groups: int, num_steps: int) -> None:
        self.num_steps = num_steps
        self._bars = Bars()
        self._validation: list[float | None] = [None] * num_groups
        self._paces = [Pace(num_steps) for _ in range(num_groups)]
        for group in range(num_groups):
            self._show(group, step=0)

    def _show(self, group: int, *, step: int, left: float | None = None, words: str = "") -> None:
        amount = f"{step:>{len(str(self.num_steps))}}/{self.num_steps}"
        ending = f"{duration(left)} left" if left else ""
        self._bars.show(f"group {group}", done=step, total=self.num_steps, amount=amount, left=ending, words=words)

    def update(self, group: int, row: dict[str, Any]) -> None:
        left = self._paces[group].left(row["step"], now=row["time"])
        if row["kind"] == "evaluate":
            self._validation[group] = row.get("log_loss", row.get("cross_entropy"))
            self.say(f"group {group} step {row['step']}: {describe(row)}")
            return
        words = describe_briefly(row, validation=self._validation[group], room=self._bars.room)
        self._show(group, step=row["step"], left=left, words=words)

    def say(self, text: str) -> None:
        self._bars.say(text)

    def close(self) -> None:
        self._bars.close()


def make_progress(*, show: bool, num_groups: int, num_steps: int) -> Progress:
    """The display that suits the place: bars on a terminal, lines elsewhere, nothing if not wanted."""
    if not show:
        return Silent()
    kind = LiveProgress if sys.stderr.isatty() else PlainProgress
    return kind(num_groups=num_groups, num_steps=num_steps)
